"""Adapters: an architecture's prunable modules, and all that code outside this folder knows of it.

A decoder layer has two prunable modules, attention and MLP. Each ends in a linear layer (`last`) whose
input channels belong to units: a KV group (a KV head with the query heads it serves) or an MLP channel.
An adapter says where those linears are and which of their rows and columns belong to which unit; slicing,
scoring and counting follow from that and are written once, here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from numprune.errors import UnsupportedArchitecture
from numprune.plan.keys import ModuleKey


@dataclass(frozen=True)
class Section:
    """`width` consecutive indices per unit, the first unit's beginning at `offset`."""

    offset: int
    width: int

    def indices(self, units: Sequence[int]) -> torch.Tensor:
        starts = torch.as_tensor(units, dtype=torch.long) * self.width + self.offset
        return (starts[:, None] + torch.arange(self.width)).reshape(-1)


@dataclass(frozen=True)
class Block:
    """One prunable module of a loaded model.

    `inputs` are the linears whose out-features belong to the units, each with its sections (several when
    projections are fused); `last` is the linear whose in-features do, `width` consecutive ones per unit.
    `remainder` counts parameters that belong to no unit but go with the last one (norms over the head dimension).
    """

    key: ModuleKey
    units: int
    width: int
    inputs: tuple[tuple[nn.Linear, tuple[Section, ...]], ...]
    last: nn.Linear
    remainder: int = 0

    @property
    def cost(self) -> int:
        """Parameters that go with one unit: rows (and biases) of the inputs, columns of the last linear."""
        rows = 0
        for linear, sections in self.inputs:
            per_row = linear.in_features + (linear.bias is not None)
            rows += per_row * sum(section.width for section in sections)
        return rows + self.width * self.last.out_features

    @property
    def solving(self) -> float:
        """What factorising the moments of the last linear's inputs takes, in multiplications up to a factor."""
        return float(self.last.in_features) ** 3

    def channels(self, units: Sequence[int]) -> torch.Tensor:
        """In-features of `last` that belong to `units`, (len(units) * width,)."""
        return Section(0, self.width).indices(units)


def narrow_linear(
    linear: nn.Linear, *, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> nn.Linear:
    """A copy of `linear` with only the given out-features (`rows`) or in-features (`columns`)."""
    weight, bias = linear.weight.detach(), linear.bias
    if rows is not None:
        rows = rows.to(weight.device)
        weight = weight[rows]
        bias = None if bias is None else bias.detach()[rows]
    if columns is not None:
        weight = weight[:, columns.to(weight.device)]
    return make_linear(weight, bias)


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """nn.Linear owning copies of `weight` (out, in) and `bias` (out,)."""
    # Built at size 1: torch warns when it initialises a linear without channels.
    linear = nn.Linear(1, 1, bias=bias is not None, device="meta")
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


class EmptyAttention(nn.Module):
    """The attention of a layer without heads: it puts out zeros, or the bias of its output projection."""

    def __init__(self, layer_idx: int, bias: torch.Tensor | None):
        super().__init__()
        self.layer_idx = layer_idx
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
        if cache is not None:
            # Caches read the sequence length off their tensors, so an empty layer still stores one number a token.
            placeholder = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(placeholder, placeholder, self.layer_idx)
        output = torch.zeros_like(hidden_states)
        return (output if self.bias is None else output + self.bias), None


class Adapter(ABC):
    """One architecture. Stateless: everything is read off the module and its config.

    A subclass names the transformers `model_type`s it serves and returns the blocks of a decoder layer; see
    `llama.py` for the shortest complete one.
    """

    model_types: ClassVar[tuple[str, ...]]
    reads_text: ClassVar[bool] = True
    """Whether checkpoints come with a text tokenizer."""
    auto_class: ClassVar[Any] = AutoModelForCausalLM
    """The class of transformers that opens checkpoints."""
    sliceable: ClassVar[tuple[str, ...]] = ()
    """Model types whose residual stream can be narrowed (`numprune.slicing.stream`): RMS norms before the modules
    alone, the layers' parts under Llama's names."""

    @abstractmethod
    def layers(self, model: nn.Module) -> nn.ModuleList:
        """The decoder layers, in order."""

    def decoder(self, model: nn.Module) -> nn.Module:
        """What every token passes through before the output layer; vision towers and the like are outside."""
        return model

    @abstractmethod
    def attention(self, layer: nn.Module, index: int, config: Any) -> Block:
        """The attention block of a layer that still has heads."""

    @abstractmethod
    def mlp(self, layer: nn.Module, index: int, config: Any) -> Block:
        """The MLP block of a layer."""

    @abstractmethod
    def attention_owner(self, layer: nn.Module) -> tuple[nn.Module, str]:
        """The module and attribute name that hold the layer's attention, which ends in its block's last linear."""

    def final_norm(self, model: nn.Module) -> nn.Module | None:
        """The norm behind the last layer; None where there is none, or one without weights."""
        layers = self.layers(model)
        owner = next(module for module in model.modules() if any(child is layers for child in module.children()))
        norm = getattr(owner, "norm", None) or getattr(owner, "final_layer_norm", None)
        return None if norm is None or norm.weight is None else norm

    def norm_offset(self, config: Any) -> float:
        """What norms add to their weights before they multiply by them."""
        return 0.0

    def check(self, config: Any) -> None:
        """Raise UnsupportedArchitecture for variants of the architecture that cannot be pruned this way."""

    def adds_outputs(self, config: Any) -> bool:
        """Whether what a module puts out is added to the residual stream as it is; not where a norm stands between."""
        return True

    def only_adds(self, config: Any) -> bool:
        """Whether a layer without modules is none: it passes the residual stream on as it is."""
        return True

    def wrap(self, module: nn.Module, name: str, folder: Path) -> Any:
        """The model around a module opened from `folder`, with what else the folder has; None where a plain
        `numprune.Model` serves."""
        return None

    def residual_width(self, model: nn.Module) -> int | None:
        """Width of a residual stream that was narrowed (`numprune.slicing.stream`); None for one of its own."""
        shortcut = getattr(self.layers(model)[0], "attention_shortcut", None)
        return None if shortcut is None else shortcut.in_features

    def resize_attention(self, layer: nn.Module, units: int, config: Any) -> None:
        """Adjust what an attention module remembers about its number of heads, after slicing."""

    def maximum_length(self, config: Any) -> int | None:
        """Longest sequence the position encoding was trained for."""
        return getattr(config, "max_position_embeddings", None)

    def blocks(self, model: nn.Module) -> list[Block]:
        """All prunable modules, attention before MLP in each layer; emptied modules are left out."""
        layers = enumerate(self.layers(model))
        return [block for index, layer in layers for block in self.layer_blocks(layer, index, model.config)]

    def layer_blocks(self, layer: nn.Module, index: int, config: Any) -> list[Block]:
        """The prunable modules of one decoder layer."""
        blocks: list[Block] = []
        owner, name = self.attention_owner(layer)
        attention = getattr(owner, name)
        if not isinstance(attention, EmptyAttention):
            block = self.attention(layer, index, config)
            rest = sum(p.numel() for p in attention.parameters()) - block.units * block.cost
            rest -= 0 if block.last.bias is None else block.last.bias.numel()
            blocks.append(replace(block, remainder=rest))
        mlp = self.mlp(layer, index, config)
        if mlp.units:
            blocks.append(mlp)
        return blocks


_REGISTRY: dict[str, Adapter] = {}


def register(adapter: type[Adapter]) -> type[Adapter]:
    """Class decorator: makes an adapter known under its model types."""
    for model_type in adapter.model_types:
        _REGISTRY[model_type] = adapter()
    return adapter


def supported_model_types() -> list[str]:
    return sorted(_REGISTRY)


def adapter_for(config: Any) -> Adapter:
    """The adapter for a transformers config.

    Raises:
        UnsupportedArchitecture: naming the architecture and the reason.
    """
    name = (getattr(config, "architectures", None) or [config.model_type])[0]
    reason = _refusal(config)
    if reason:
        raise UnsupportedArchitecture(f"{name} is not supported: {reason}; choose a dense decoder-only model.")
    if config.model_type not in _REGISTRY:
        known = ", ".join(supported_model_types())
        raise UnsupportedArchitecture(
            f"{name} (model_type '{config.model_type}') has no adapter; supported model types are {known}."
        )
    adapter = _REGISTRY[config.model_type]
    adapter.check(config)
    return adapter


def _refusal(config: Any) -> str | None:
    """Why whole families cannot be pruned by units of single layers."""
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model, whose cross-attention has no unit in one layer"
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    if any(getattr(config, name, None) for name in experts):
        return "it is a mixture of experts (MoE), whose channels see only the tokens routed to them"
    if getattr(config, "quantization_config", None):
        return "its weights are quantised, and a part of them no longer fits its scales"
    return None


def blocks_parameters(blocks: Iterable[Block]) -> int:
    """Prunable parameters of some blocks."""
    return sum(block.units * block.cost for block in blocks)
