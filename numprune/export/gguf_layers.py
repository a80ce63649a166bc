"""A decoder as llama.cpp counts its heads and names its tensors.

Most architectures of llama.cpp give all layers one shape. Two do not, and their graphs are those of others: `deci` is
Llama's, `openelm` is Qwen3's with tied embeddings. So models whose layers differ are written as one of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from numprune.models.adapter import Block
from numprune.models.model import Model
from numprune.plan.keys import ModuleKey

# By model type: where all layers kept the same counts, and where they differ. Llama's graph takes biases anywhere.
_ARCHITECTURES = {
    "llama": ("llama", "deci"),
    "mistral": ("llama", "deci"),
    "qwen2": ("llama", "deci"),
    "phi3": ("llama", "deci"),
    "qwen3": ("qwen3", "openelm"),
}
# Those whose frequencies do not depend on the length of the text.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the file: its name in it, its values, stacked, and how many heads' rows change order (0: none)."""

    name: str
    parts: tuple[torch.Tensor, ...]
    heads: int = 0

    @property
    def shape(self) -> torch.Size:
        return torch.Size((sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:]))

    def read(self) -> torch.Tensor:
        """The values as they are stored, float32 on the CPU."""
        values = torch.cat([part.detach().to("cpu", torch.float32) for part in self.parts])
        if self.heads:
            # transformers rotates the first half of a head against the second, llama.cpp neighbours.
            values = values.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        return values.contiguous()


@dataclass(frozen=True)
class FileLayer:
    """A decoder layer in the file; `padded` are emptied modules that are written as a unit of zeros."""

    heads: int
    kv_heads: int
    channels: int
    tensors: list[FileTensor]
    padded: list[ModuleKey]


def layers_refusal(model: Model) -> str | None:
    """Why llama.cpp cannot compute a model's layers, as half a sentence after its name; None when it can."""
    config = model.config
    if model.adapter.residual_width(model.module) is not None:
        return "has a narrowed residual stream (SliceGPT), which llama.cpp has no layers for"
    if config.model_type not in _ARCHITECTURES:
        return f"is a {model.architecture}, for which llama.cpp has no architecture with counts per layer"
    if config.hidden_act != "silu":
        return f"has {config.hidden_act} in its MLPs, where llama.cpp has SiLU"
    rope = config.rope_parameters
    if rope["rope_type"] not in _ROPE_TYPES:
        return f"has a rotary embedding of type {rope['rope_type']}, whose frequencies change with the text's length"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "rotates a part of each head, where llama.cpp rotates all of it"
    if _ARCHITECTURES[config.model_type][0] == "llama":
        return None
    if rope["rope_type"] != "default":
        return f"has a rotary embedding of type {rope['rope_type']}, which llama.cpp scales in Llama's graph only"
    layers = model.adapter.layers(model.module)
    if any(name.endswith(".bias") for name, _ in layers.named_parameters()):
        return "has biases in its layers, which llama.cpp adds in Llama's graph only (use another compensation)"
    if not is_even(model) and not _tied(model):
        return "has layers of several shapes and an output layer of its own (prune with equal counts in every layer)"
    return None


def is_even(model: Model) -> bool:
    """Whether all layers kept the same counts, none of them nothing."""
    units = model.units()
    kinds = [{units[ModuleKey(layer, kind)] for layer in range(model.layers)} for kind in ("attention", "mlp")]
    return all(len(counts) == 1 and 0 not in counts for counts in kinds)


def architecture(model: Model) -> str:
    """llama.cpp's name for the graph that computes a model."""
    even, uneven = _ARCHITECTURES[model.config.model_type]
    return even if is_even(model) else uneven


def head_shape(config: Any) -> tuple[int, int]:
    """Width of a head, and query heads of a KV group."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width, config.num_attention_heads // config.num_key_value_heads


def outer_tensors(model: Model) -> list[FileTensor]:
    """The tensors outside the layers: embeddings, the last norm, the output layer unless tied, rotary frequencies."""
    module = model.module
    tensors = [
        FileTensor("token_embd.weight", (module.get_input_embeddings().weight,)),
        FileTensor("output_norm.weight", (module.model.norm.weight,)),
    ]
    if not _tied(model):
        tensors.append(FileTensor("output.weight", (module.get_output_embeddings().weight,)))
    rope = model.config.rope_parameters
    if rope["rope_type"] != "default":
        width, _ = head_shape(model.config)
        plain = rope["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        scaled = module.model.rotary_emb.inv_freq.detach().cpu().double()
        tensors.append(FileTensor("rope_freqs.weight", (plain / scaled,)))
    return tensors


def _tied(model: Model) -> bool:
    return model.module.get_output_embeddings().weight is model.module.get_input_embeddings().weight


def file_layers(model: Model) -> list[FileLayer]:
    """Every decoder layer.

    An emptied attention counts no heads where llama.cpp allows it: in `deci`, behind the first layer, without a bias.
    Elsewhere, and for an emptied MLP, one unit of zeros is written, whose output is exactly nothing.
    """
    blocks = {block.key: block for block in model.blocks}
    name = architecture(model)
    described = []
    for index, layer in enumerate(model.adapter.layers(model.module)):
        attention = blocks.get(ModuleKey(index, "attention"))
        tensors, kv_heads, padded = _attention(model, layer, index, attention, name)
        block = model.adapter.mlp(layer, index, model.config)
        tensors += _mlp(model, layer, block)
        if not block.units:
            padded.append(block.key)
        named = [replace(tensor, name=f"blk.{index}.{tensor.name}") for tensor in tensors]
        _, group = head_shape(model.config)
        described.append(FileLayer(kv_heads * group, kv_heads, max(block.units, 1), named, padded))
    return described


def _attention(
    model: Model, layer: nn.Module, index: int, block: Block | None, name: str
) -> tuple[list[FileTensor], int, list[ModuleKey]]:
    """Tensors of an attention, its KV heads, and its key if it is one of zeros."""
    width, group = head_shape(model.config)
    hidden, padded = model.config.hidden_size, []
    owner, attribute = model.adapter.attention_owner(layer)
    module = getattr(owner, attribute)
    if block is not None:
        kv_heads, parts, last, bias = block.units, list(_projections(block)), block.last.weight, block.last.bias
        norms = [getattr(module, f"{part}_norm", None) for part in "qk"]
        norms = [None if norm is None else norm.weight for norm in norms]
    else:
        bias = module.bias
        if name == "deci" and index > 0 and bias is None:
            return [], 0, []
        kv_heads, last = 1, torch.zeros(hidden, group * width)
        parts = [(torch.zeros(rows, hidden), None) for rows in (group * width, width, width)]
        norms = [torch.ones(width) if name == "openelm" else None] * 2
        padded.append(ModuleKey(index, "attention"))
    tensors = _named("attn_norm", layer.input_layernorm.weight)
    if name == "openelm":
        tensors.append(FileTensor("attn_qkv.weight", tuple(weight for weight, _ in parts)))
    else:
        turned = (kv_heads * group, kv_heads, 0) if name in ("llama", "deci") else (0, 0, 0)
        for part, (weight, offset), heads in zip("qkv", parts, turned, strict=True):
            tensors += _named(f"attn_{part}", weight, offset, heads)
    for part, norm in zip("qk", norms, strict=True):
        if norm is not None:
            tensors += _named(f"attn_{part}_norm", norm)
    return [*tensors, *_named("attn_output", last, bias)], kv_heads, padded


def _mlp(model: Model, layer: nn.Module, block: Block) -> list[FileTensor]:
    hidden = model.config.hidden_size
    parts, last = list(_projections(block)), block.last.weight
    if not block.units:
        parts, last = [(torch.zeros(1, hidden), None)] * 2, torch.zeros(hidden, 1)
    tensors = _named("ffn_norm", layer.post_attention_layernorm.weight)
    for part, (weight, offset) in zip(("gate", "up"), parts, strict=True):
        tensors += _named(f"ffn_{part}", weight, offset)
    return [*tensors, *_named("ffn_down", last, block.last.bias)]


def _projections(block: Block) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Weight and bias of each projection of a block, also of those that are fused in one linear."""
    for linear, sections in block.inputs:
        for section in sections:
            rows = slice(section.offset, section.offset + block.units * section.width)
            yield linear.weight[rows], None if linear.bias is None else linear.bias[rows]


def _named(name: str, weight: torch.Tensor, bias: torch.Tensor | None = None, heads: int = 0) -> list[FileTensor]:
    tensors = [FileTensor(f"{name}.weight", (weight,), heads)]
    return tensors if bias is None else [*tensors, FileTensor(f"{name}.bias", (bias,), heads)]
