"""Llama and the architectures that share its layout: separate q, k, v, o and gate, up, down projections.

Covers Llama 1/2/3, Mistral, Ministral, Qwen2/2.5 (biases on q, k, v), Qwen3 and Gemma 3 (norms over the head
dimension, shared by all heads, so nothing of them is sliced), Gemma 1/2 and SmolLM3.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from numprune.models.adapter import Adapter, Block, Section, register
from numprune.plan.keys import ModuleKey


@register
class LlamaAdapter(Adapter):
    """Grouped-query attention with separate projections and a gated MLP."""

    model_types = (
        "llama",
        "mistral",
        "ministral",
        "ministral3",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "smollm3",
    )
    # Not Gemma: it scales its embeddings, and from the second on has norms behind the modules.
    sliceable = ("llama", "mistral", "qwen2", "qwen3", "smollm3")

    def layers(self, model: nn.Module) -> nn.ModuleList:
        return model.model.layers

    def norm_offset(self, config: Any) -> float:
        return 1.0 if config.model_type.startswith("gemma") else 0.0

    def adds_outputs(self, config: Any) -> bool:
        return config.model_type not in ("gemma2", "gemma3_text")

    def attention_owner(self, layer: nn.Module) -> tuple[nn.Module, str]:
        return layer, "self_attn"

    def attention(self, layer: nn.Module, index: int, config: Any) -> Block:
        attn = layer.self_attn
        head_dim, group = attn.head_dim, attn.num_key_value_groups
        return Block(
            key=ModuleKey(index, "attention"),
            units=attn.k_proj.out_features // head_dim,
            width=group * head_dim,
            inputs=(
                (attn.q_proj, (Section(0, group * head_dim),)),
                (attn.k_proj, (Section(0, head_dim),)),
                (attn.v_proj, (Section(0, head_dim),)),
            ),
            last=attn.o_proj,
        )

    def mlp(self, layer: nn.Module, index: int, config: Any) -> Block:
        mlp = layer.mlp
        channel = (Section(0, 1),)
        return Block(
            key=ModuleKey(index, "mlp"),
            units=mlp.down_proj.in_features,
            width=1,
            inputs=((mlp.gate_proj, channel), (mlp.up_proj, channel)),
            last=mlp.down_proj,
        )
