"""Layers that go as a whole: what goes with them, and a model without them.

A layer both of whose modules keep nothing adds nothing to the residual stream, so the model without it computes the
same: one layer fewer in the config, the later ones moved up, with their places in the cache and in the config's lists.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from numprune.models.adapter import Adapter, Block, EmptyAttention, blocks_parameters
from numprune.models.layer_sizes import text_config
from numprune.plan.keys import KINDS, ModuleKey

PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
"""Entries of a config that are a list with one value a layer."""


def beside_units(module: nn.Module, adapter: Adapter) -> tuple[int | None, ...]:
    """Parameters of every layer outside its units: its norms, and the biases of its modules' outputs.

    None for a layer that cannot go as a whole: one that does more than add what its modules put out, or one where an
    emptied module has left a constant.
    """
    counts = []
    for index, layer in enumerate(adapter.layers(module)):
        blocks = adapter.layer_blocks(layer, index, module.config)
        counts.append(layer_beside(layer, blocks, adapter, module.config))
    return tuple(counts)


def layer_beside(layer: nn.Module, blocks: Collection[Block], adapter: Adapter, config: Any) -> int | None:
    """What `beside_units` says of one layer with these blocks."""
    if not adapter.only_adds(config) or _leaves_constant(layer, blocks, adapter):
        return None
    whole = sum(parameter.numel() for parameter in layer.parameters())
    return whole - blocks_parameters(blocks) - sum(block.remainder for block in blocks)


def _leaves_constant(layer: nn.Module, blocks: Collection[Block], adapter: Adapter) -> bool:
    """Whether a module that was emptied before has left a bias."""
    attention = getattr(*adapter.attention_owner(layer))
    if isinstance(attention, EmptyAttention) and attention.bias is not None:
        return True
    kept = {id(block.last) for block in blocks}
    linears = (part for part in layer.modules() if isinstance(part, nn.Linear) and id(part) not in kept)
    return any(part.in_features == 0 and part.bias is not None for part in linears)


def left_layers(layers: int, gone: Collection[int]) -> list[int]:
    """The layers that are left, by the numbers they had."""
    return [index for index in range(layers) if index not in gone]


def own_keys(layers: int, gone: Collection[int]) -> dict[ModuleKey, ModuleKey]:
    """What every module of the layers that are left was called before, by its name in the model without the others."""
    left = enumerate(left_layers(layers, gone))
    return {ModuleKey(new, kind): ModuleKey(old, kind) for new, old in left for kind in KINDS}


def drop_layers(module: PreTrainedModel, adapter: Adapter, gone: Collection[int]) -> None:
    """Take layers out of a model, in place, and close the gaps."""
    if not gone:
        return
    layers = adapter.layers(module)
    left = left_layers(len(layers), gone)
    kept = [layers[index] for index in left]
    del layers[:]
    for index, layer in enumerate(kept):
        layers.append(layer)
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = index
    shorten(module.config, left)


def shorten(config: Any, left: Iterable[int]) -> None:
    """Let a config describe these of its layers, in place."""
    text, left = text_config(config), list(left)
    for name in PER_LAYER:
        values = getattr(text, name, None)
        if isinstance(values, list | tuple):
            setattr(text, name, [values[index] for index in left])
    text.num_hidden_layers = len(left)


def shortened(config: Any, left: Iterable[int]) -> Any:
    """A copy of a config that describes these of its layers."""
    config = copy.deepcopy(config)
    shorten(config, left)
    return config
