"""Phi-3: query, key and value fused in one projection, gate and up in another."""

from __future__ import annotations

from typing import Any

from torch import nn

from numprune.models.adapter import Adapter, Block, Section, register
from numprune.plan.keys import ModuleKey


class LayerConfig:
    """A config seen from one layer: some values of its own, the shared config's for everything else."""

    def __init__(self, shared: Any, **own: Any):
        self.__dict__.update(own, _shared=shared)

    def __getattr__(self, name: str) -> Any:
        # Copying asks for attributes before _shared exists.
        if name.startswith("__") or name == "_shared":
            raise AttributeError(name)
        return getattr(self._shared, name)


@register
class Phi3Adapter(Adapter):
    """Phi-3 and Phi-4-mini; the rows of qkv_proj are [queries | keys | values]."""

    model_types = ("phi3",)

    def layers(self, model: nn.Module) -> nn.ModuleList:
        return model.model.layers

    def attention_owner(self, layer: nn.Module) -> tuple[nn.Module, str]:
        return layer, "self_attn"

    def attention(self, layer: nn.Module, index: int, config: Any) -> Block:
        attn = layer.self_attn
        head_dim, group = attn.head_dim, attn.num_key_value_groups
        units = attn.o_proj.in_features // (group * head_dim)
        queries, keys = units * group * head_dim, units * head_dim
        sections = (Section(0, group * head_dim), Section(queries, head_dim), Section(queries + keys, head_dim))
        return Block(
            key=ModuleKey(index, "attention"),
            units=units,
            width=group * head_dim,
            inputs=((attn.qkv_proj, sections),),
            last=attn.o_proj,
        )

    def mlp(self, layer: nn.Module, index: int, config: Any) -> Block:
        channels = layer.mlp.down_proj.in_features
        return Block(
            key=ModuleKey(index, "mlp"),
            units=channels,
            width=1,
            inputs=((layer.mlp.gate_up_proj, (Section(0, 1), Section(channels, 1))),),
            last=layer.mlp.down_proj,
        )

    def resize_attention(self, layer: nn.Module, units: int, config: Any) -> None:
        # Phi3Attention.forward splits qkv by the config's number of heads.
        attn = layer.self_attn
        attn.num_key_value_heads = units
        attn.config = LayerConfig(
            config, num_attention_heads=units * attn.num_key_value_groups, num_key_value_heads=units
        )
