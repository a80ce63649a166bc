"""StableLM: Llama's layout with layer norms, a part of each head rotated, and parallel modules in some sizes."""

from __future__ import annotations

from typing import Any

from torch import nn

from numprune.errors import UnsupportedArchitecture
from numprune.models.adapter import register
from numprune.models.llama import LlamaAdapter


@register
class StableLmAdapter(LlamaAdapter):
    """The attention remembers its numbers of heads."""

    model_types = ("stablelm",)
    sliceable = ()

    def check(self, config: Any) -> None:
        if config.qk_layernorm:
            raise UnsupportedArchitecture(
                "This StableLM has a norm for every single head (qk_layernorm), which would have to go with it; choose"
                " one without, such as stabilityai/stablelm-2-1_6b."
            )

    def resize_attention(self, layer: nn.Module, units: int, config: Any) -> None:
        attn = layer.self_attn
        attn.num_key_value_heads, attn.num_heads = units, units * attn.num_key_value_groups
