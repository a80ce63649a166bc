"""OLMo-2: norms behind the modules, and queries and keys normalised across all heads of a layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from numprune.models.adapter import Block, Section, register
from numprune.models.llama import LlamaAdapter
from numprune.plan.keys import ModuleKey


@register
class Olmo2Adapter(LlamaAdapter):
    """All heads of a layer are one unit: without one of them the others would be normalised otherwise."""

    model_types = ("olmo2",)
    sliceable = ()

    def adds_outputs(self, config: Any) -> bool:
        return False

    def attention(self, layer: nn.Module, index: int, config: Any) -> Block:
        attn = layer.self_attn
        linears = (attn.q_proj, attn.k_proj, attn.v_proj)
        return Block(
            key=ModuleKey(index, "attention"),
            units=1,
            width=attn.o_proj.in_features,
            inputs=tuple((linear, (Section(0, linear.out_features),)) for linear in linears),
            last=attn.o_proj,
        )
