"""A Llama-shaped decoder as llama.cpp counts its heads and names its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from numprune.models.adapter import Block, ModuleKey
from numprune.models.model import Model

MODEL_TYPES = ("llama", "mistral", "qwen2", "phi3")
"""RMS norms, rotated halves of the heads and a gated MLP; biases anywhere, projections separate or fused."""

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Those whose frequencies do not depend on the length of the text."""


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the file: its name there, its values, and how many heads' rows change order (0: none)."""

    name: str
    values: torch.Tensor
    heads: int = 0

    def read(self) -> torch.Tensor:
        """The values as they are stored, float32 on the CPU."""
        values = self.values.detach().to("cpu", torch.float32)
        if self.heads:
            # transformers rotates the first half of a head against the second, llama.cpp neighbours.
            values = values.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        return values.contiguous()


@dataclass(frozen=True)
class FileLayer:
    """What llama.cpp must know of a decoder layer; `padded` are emptied modules that are written as a unit of zeros."""

    heads: int
    kv_heads: int
    channels: int
    tensors: list[FileTensor]
    padded: list[ModuleKey]


def layers_refusal(model: Model) -> str | None:
    """Why llama.cpp cannot compute a model's layers, as half a sentence after its name; None when it can."""
    config = model.config
    if config.model_type not in MODEL_TYPES:
        return f"is a {model.architecture}, for which llama.cpp has no architecture with counts per layer"
    if config.hidden_act != "silu":
        return f"has {config.hidden_act} in its MLPs, where llama.cpp has SiLU"
    rope = config.rope_parameters
    if rope["rope_type"] not in _ROPE_TYPES:
        return f"has a rotary embedding of type {rope['rope_type']}, whose frequencies change with the text's length"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "rotates a part of each head, where llama.cpp rotates all of it"
    return None


def head_shape(config: Any) -> tuple[int, int]:
    """Width of a head, and query heads of a KV group."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width, config.num_attention_heads // config.num_key_value_heads


def outer_tensors(model: Model) -> list[FileTensor]:
    """What lies around the layers: embeddings, the last norm, the output layer unless tied, rotary frequencies."""
    module = model.module
    embeddings, output = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    tensors = [FileTensor("token_embd.weight", embeddings), FileTensor("output_norm.weight", module.model.norm.weight)]
    if output is not embeddings:
        tensors.append(FileTensor("output.weight", output))
    rope = model.config.rope_parameters
    if rope["rope_type"] != "default":
        width, _ = head_shape(model.config)
        plain = rope["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        scaled = module.model.rotary_emb.inv_freq.detach().cpu().double()
        tensors.append(FileTensor("rope_freqs.weight", plain / scaled))
    return tensors


def file_layers(model: Model) -> list[FileLayer]:
    """Every decoder layer.

    An emptied attention counts no heads, which llama.cpp allows behind the first layer and without a bias. Elsewhere,
    and for an emptied MLP, one unit of zeros is written, whose output is exactly nothing.
    """
    left = {block.key: block for block in model.blocks}
    found = []
    for index, layer in enumerate(model.adapter.layers(model.module)):
        attention = left.get(ModuleKey(index, "attention"))
        mlp = model.adapter.mlp(layer, index, model.config)
        found.append(_file_layer(model, layer, index, attention, mlp))
    return found


def _file_layer(model: Model, layer: nn.Module, index: int, attention: Block | None, mlp: Block) -> FileLayer:
    width, group = head_shape(model.config)
    hidden, padded = model.config.hidden_size, []
    tensors, kv_heads = [], 0
    if attention is not None:
        kv_heads = attention.units
        parts, last, bias = list(_parts(attention)), attention.last.weight, attention.last.bias
    else:
        owner, name = model.adapter.attention_owner(layer)
        bias = getattr(owner, name).bias
        if index == 0 or bias is not None:
            kv_heads = 1
            padded.append(ModuleKey(index, "attention"))
            parts = [(torch.zeros(rows, hidden), None) for rows in (group * width, width, width)]
            last = torch.zeros(hidden, group * width)
    if kv_heads:
        tensors += _named("attn_norm", layer.input_layernorm.weight)
        for name, (weight, offset), heads in zip("qkv", parts, (kv_heads * group, kv_heads, 0), strict=True):
            tensors += _named(f"attn_{name}", weight, offset, heads)
        tensors += _named("attn_output", last, bias)

    parts, last, channels = list(_parts(mlp)), mlp.last.weight, mlp.units
    if not channels:
        channels = 1
        padded.append(ModuleKey(index, "mlp"))
        parts, last = [(torch.zeros(1, hidden), None)] * 2, torch.zeros(hidden, 1)
    tensors += _named("ffn_norm", layer.post_attention_layernorm.weight)
    for name, (weight, offset) in zip(("gate", "up"), parts, strict=True):
        tensors += _named(f"ffn_{name}", weight, offset)
    tensors += _named("ffn_down", last, mlp.last.bias)
    placed = [FileTensor(f"blk.{index}.{each.name}", each.values, each.heads) for each in tensors]
    return FileLayer(kv_heads * group, kv_heads, channels, placed, padded)


def _parts(block: Block) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Weight and bias of each projection of a block, also of those that are fused in one linear."""
    for linear, sections in block.inputs:
        for section in sections:
            rows = slice(section.offset, section.offset + block.units * section.width)
            yield linear.weight[rows], None if linear.bias is None else linear.bias[rows]


def _named(name: str, weight: torch.Tensor, bias: torch.Tensor | None = None, heads: int = 0) -> list[FileTensor]:
    tensors = [FileTensor(f"{name}.weight", weight, heads)]
    return tensors if bias is None else [*tensors, FileTensor(f"{name}.bias", bias, heads)]
