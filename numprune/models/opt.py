"""OPT: biases everywhere, learned positions, an MLP without gate."""

from __future__ import annotations

from typing import Any

from torch import nn

from numprune.models.adapter import Adapter, Block, Section, register
from numprune.plan.keys import ModuleKey


@register
class OPTAdapter(Adapter):
    """Multi-head attention with separate projections; fc1 and fc2 sit in the layer itself."""

    model_types = ("opt",)

    def layers(self, model: nn.Module) -> nn.ModuleList:
        return model.model.decoder.layers

    def attention_owner(self, layer: nn.Module) -> tuple[nn.Module, str]:
        return layer, "self_attn"

    def attention(self, layer: nn.Module, index: int, config: Any) -> Block:
        attn = layer.self_attn
        head = (Section(0, attn.head_dim),)
        return Block(
            key=ModuleKey(index, "attention"),
            units=attn.out_proj.in_features // attn.head_dim,
            width=attn.head_dim,
            inputs=((attn.q_proj, head), (attn.k_proj, head), (attn.v_proj, head)),
            last=attn.out_proj,
        )

    def mlp(self, layer: nn.Module, index: int, config: Any) -> Block:
        return Block(
            key=ModuleKey(index, "mlp"),
            units=layer.fc2.in_features,
            width=1,
            inputs=((layer.fc1, (Section(0, 1),)),),
            last=layer.fc2,
        )

    def adds_outputs(self, config: Any) -> bool:
        # OPT-350M alone has its norms behind the sums.
        return config.do_layer_norm_before

    def only_adds(self, config: Any) -> bool:
        return config.do_layer_norm_before

    def resize_attention(self, layer: nn.Module, units: int, config: Any) -> None:
        layer.self_attn.num_heads = units
