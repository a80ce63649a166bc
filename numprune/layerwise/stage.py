"""A model that lies in its files, and the layer of it that is computed with."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from numprune.errors import InputError
from numprune.models.adapter import Adapter, Block
from numprune.models.batches import sequences_per_forward
from numprune.models.model import Model
from numprune.models.replay import Ending, LayerCalls


@dataclass(frozen=True)
class Stage:
    """Brings one layer at a time to where it is computed with.

    Attributes:
        model: opened on the CPU in its checkpoint's data type: its tensors are then views of the files, which take no
            memory of their own until they are read, and can be dropped again by the system.
        device, dtype: where and in what layers are computed.
    """

    model: Model
    device: torch.device
    dtype: torch.dtype

    @property
    def adapter(self) -> Adapter:
        return self.model.adapter

    @property
    def layers(self) -> int:
        return self.model.layers

    def layer(self, index: int) -> nn.Module:
        """A copy of a decoder layer, to be let go after use."""
        layer = copy.deepcopy(self.adapter.layers(self.model.module)[index])
        return layer.to(self.device, self.dtype)

    def filed_blocks(self, index: int) -> list[Block]:
        """The prunable modules of a decoder layer as they lie in the files."""
        return self.adapter.layer_blocks(self.adapter.layers(self.model.module)[index], index, self.model.config)

    def front(self, *, head: bool) -> PreTrainedModel:
        """A copy of all that is outside the layers, with the output layer if asked for; the layers' settings alone
        stand in their places."""
        module = self.model.module
        layers = self.adapter.layers(module)
        shells = nn.ModuleList(_Shell(layer) for layer in layers)
        unread = {} if head else _unread(module)
        return copy.deepcopy(module, {id(layers): shells, **unread}).to(self.device, self.dtype)

    def calls(self, rows: torch.Tensor, size: int | None = None) -> LayerCalls:
        """What the layers are called with on token ids (sequences, tokens), and the stream that enters the first.

        The stream lies on the CPU, in batches of so many sequences; None for half as many as in memory: what a layer
        computes on the way would be the largest part.
        """
        size = size or max(1, sequences_per_forward(self.device, rows.shape[1]) // 2)
        batches = list(rows.to(self.device).split(size))
        with torch.no_grad():
            calls = LayerCalls.without_layers(self.front(head=False), self.adapter, batches)
        calls.states[:] = [state.cpu() for state in calls.states]
        return calls

    def ending(self) -> Ending:
        """What the model does behind its last layer."""
        return Ending(self.front(head=True), self.adapter)


class _Shell(nn.Module):
    """A layer's settings without its parts."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        vars(self).update({name: value for name, value in vars(layer).items() if isinstance(value, str | int | bool)})


def _unread(module: nn.Module) -> dict[int, nn.Module]:
    """The output layer, where it is not the embedding: nothing is predicted here."""
    head = module.get_output_embeddings()
    if head is None or head.weight is module.get_input_embeddings().weight:
        return {}
    return {id(head): nn.Identity()}


def largest_module(model: Model) -> int:
    """Input channels of the widest last linear."""
    return max(block.last.in_features for block in model.blocks)


def layer_bytes(model: Model, itemsize: int) -> int:
    """Memory of the largest decoder layer in a data type of so many bytes."""
    sizes = (sum(p.numel() for p in layer.parameters()) for layer in model.adapter.layers(model.module))
    return max(sizes) * itemsize


@dataclass(frozen=True)
class Needs:
    """Bytes of memory a way of pruning takes at most, files and the program itself not counted.

    Attributes:
        weights: of the model, or of the parts that are in memory at once.
        pruned: of the pruned copy.
        moments: Gram matrices.
        work: of the largest module's solve: its matrix in float64, four times over.
        streams: residual stream of the calibration text, once and a batch.
    """

    weights: int
    pruned: int
    moments: int
    work: int
    streams: int

    @property
    def total(self) -> int:
        return self.weights + self.pruned + self.moments + self.work + self.streams


def needs_in_memory(model: Model, itemsize: int, shape: Sequence[int], ratio: float) -> Needs:
    """What calibrating, scoring and pruning a model as a whole takes.

    Args:
        itemsize: bytes of a weight as it is computed with.
        shape: of the calibration, (sequences, tokens).
        ratio: of the prunable parameters that goes.
    """
    weights = model.parameters * itemsize
    widest = largest_module(model)
    return Needs(
        weights=weights,
        pruned=weights - int(ratio * model.prunable_parameters * itemsize),
        moments=8 * sum(block.last.in_features**2 for block in model.blocks),
        work=4 * 8 * widest**2,
        streams=0,
    )


def needs_layer_by_layer(model: Model, itemsize: int, shape: Sequence[int], ratio: float) -> Needs:
    """What `prune_layerwise` takes; see `needs_in_memory`."""
    layer, widest = layer_bytes(model, itemsize), largest_module(model)
    config = model.config.get_text_config(decoder=True)
    embedding = model.module.get_input_embeddings().weight.numel() * itemsize
    first = model.blocks[: 1 + model.blocks[0].key.layer + 1]
    return Needs(
        weights=max(layer, embedding),
        pruned=layer - int(ratio * layer),
        moments=8 * sum(block.last.in_features**2 for block in first if block.key.layer == first[0].key.layer),
        work=4 * 8 * widest**2,
        streams=math.prod(shape) * config.hidden_size * itemsize,
    )


def check_enough(needs: Needs, memory: int) -> None:
    """Raise InputError when a model cannot be pruned in so many bytes even layer by layer."""
    if needs.total > memory:
        raise InputError(
            f"Pruning layer by layer takes about {needs.total / 1e9:.2f} GB and {memory / 1e9:.2f} GB are allowed;"
            " allow more by --memory, or calibrate on fewer or shorter sequences."
        )
