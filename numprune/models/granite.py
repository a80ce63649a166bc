"""Granite: Llama's layout with four multipliers, of embeddings, attention scores, module outputs and logits."""

from __future__ import annotations

from typing import Any

from numprune.models.adapter import register
from numprune.models.llama import LlamaAdapter


@register
class GraniteAdapter(LlamaAdapter):
    """What a module puts out is multiplied before it is added to the residual stream."""

    model_types = ("granite",)
    sliceable = ()

    def adds_outputs(self, config: Any) -> bool:
        return config.residual_multiplier == 1.0
