"""GPT-NeoX (Pythia): queries, keys and values interleaved head by head, an MLP without gate."""

from __future__ import annotations

from typing import Any

from torch import nn

from numprune.models.adapter import Adapter, Block, Section, register
from numprune.plan.keys import ModuleKey


@register
class GPTNeoXAdapter(Adapter):
    """Rows of query_key_value are, head after head, [query | key | value]."""

    model_types = ("gpt_neox",)

    def layers(self, model: nn.Module) -> nn.ModuleList:
        return model.gpt_neox.layers

    def attention_owner(self, layer: nn.Module) -> tuple[nn.Module, str]:
        return layer, "attention"

    def attention(self, layer: nn.Module, index: int, config: Any) -> Block:
        attn = layer.attention
        return Block(
            key=ModuleKey(index, "attention"),
            units=attn.dense.in_features // attn.head_size,
            width=attn.head_size,
            inputs=((attn.query_key_value, (Section(0, 3 * attn.head_size),)),),
            last=attn.dense,
        )

    def mlp(self, layer: nn.Module, index: int, config: Any) -> Block:
        return Block(
            key=ModuleKey(index, "mlp"),
            units=layer.mlp.dense_4h_to_h.in_features,
            width=1,
            inputs=((layer.mlp.dense_h_to_4h, (Section(0, 1),)),),
            last=layer.mlp.dense_4h_to_h,
        )
