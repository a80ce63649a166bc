"""A model that lies in its files, and the layer of it that is computed with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from numprune.calibration.run import within_length
from numprune.errors import InputError
from numprune.models.adapter import Adapter, Block
from numprune.models.batches import READ_LOGITS, sequences_per_backward, sequences_per_forward
from numprune.models.model import Model
from numprune.models.replay import Ending, LayerCalls
from numprune.plan.recipe import SEQUENTIAL, Recipe
from numprune.ranks import joined
from numprune.scoring.fisher import ROWS
from numprune.scoring.registry import PRICED


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

    def batches(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """The batches of `rows` (sequences, tokens) that this process runs through the layers, as indices.

        Half as many sequences at once as in memory: what a layer computes on the way would be the largest part. Of
        several processes each has whole batches of `backward_batch`, so that it can run them back.

        Raises:
            InputError: there are fewer sequences than processes.
        """
        size, ranks = max(1, sequences_per_forward(self.device, rows.shape[1]) // 2), joined()
        if not ranks.alone:
            back = self.backward_batch(rows)
            size = max(1, min(size, min(len(rows), ROWS) // ranks.count) // back) * back
        return ranks.batches(len(rows), size)

    def backward_batch(self, rows: torch.Tensor) -> int:
        """Sequences that are differentiated at once."""
        size = sequences_per_backward(rows.shape[1], self.model.module.get_output_embeddings().out_features)
        return max(1, min(size, min(len(rows), ROWS) // joined().count))

    def calls(self, batches: Sequence[torch.Tensor]) -> LayerCalls:
        """What the layers are called with on batches of token ids (sequences, tokens), and the stream that enters the
        first, which lies on the CPU."""
        batches = [batch.to(self.device) for batch in batches]
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
    return {} if head is None or _tied(module) else {id(head): nn.Identity()}


def _tied(module: nn.Module) -> bool:
    """Whether the output layer is the embedding."""
    return module.get_output_embeddings().weight is module.get_input_embeddings().weight


@dataclass(frozen=True)
class Needs:
    """Bytes of memory a way of pruning takes at most, files and the program itself not counted.

    Attributes:
        weights: of the model, or of the parts that are in memory at once.
        pruned: of the pruned copy.
        moments: Gram matrices.
        work: of solves and of a batch on its way.
        streams: residual streams of the calibration text, on the CPU.
    """

    weights: int
    pruned: int
    moments: int
    work: int
    streams: int

    @property
    def total(self) -> int:
        return self.weights + self.pruned + self.moments + self.work + self.streams

    def on(self, device: torch.device) -> int:
        """What of it lies on the device that layers are computed on."""
        return self.total if device.type == "cpu" else self.total - self.streams


def needs_in_memory(model: Model, itemsize: int, recipe: Recipe) -> Needs:
    """What calibrating, scoring and pruning a model as a whole takes.

    Args:
        itemsize: bytes of a weight as it is computed with.
        recipe: of which calibration, ratio, scorer and compensation matter.
    """
    weights, widest = model.parameters * itemsize, _widest(model)
    tokens, hidden = _tokens(model, recipe), _hidden(model)
    return Needs(
        weights=weights,
        pruned=weights - int(recipe.ratio * model.prunable_parameters * itemsize),
        moments=8 * sum(block.last.in_features**2 for block in model.blocks),
        work=_solves(recipe) * 8 * widest**2,
        streams=tokens * (6 * hidden + widest) * itemsize if recipe.compensation in SEQUENTIAL else 0,
    )


def needs_layer_by_layer(model: Model, itemsize: int, recipe: Recipe, device: torch.device) -> Needs:
    """What `prune_layerwise` takes in the pass that takes most; see `needs_in_memory`."""
    widest, hidden, tokens = _widest(model), _hidden(model), _tokens(model, recipe)
    fitted, priced = recipe.compensation in SEQUENTIAL, recipe.scorer in PRICED
    layer = max(sum(p.numel() for p in each.parameters()) for each in model.adapter.layers(model.module)) * itemsize
    narrow = layer - int(recipe.ratio * layer)
    embedding = model.module.get_input_embeddings().weight.numel()
    vocabulary = model.module.get_output_embeddings().out_features
    heads = 1 if _tied(model.module) else 2
    first = [block.last for block in model.blocks if block.key.layer == model.blocks[0].key.layer]
    grams, square = 8 * sum(last.in_features**2 for last in first), 8 * widest**2
    length = within_length(model, recipe.calibration).sequence_length
    at_once = min(tokens, length * max(1, sequences_per_forward(device, length) // 2))
    batch = at_once * (3 * widest + 6 * hidden) * itemsize
    weight = widest * hidden * (itemsize + 8)
    filed = 0 if device.type == "cpu" else square  # on a CPU the matrices are views of the files
    passes = [
        Needs(embedding * itemsize, 0, 0, 0, 0),
        Needs(layer, 0, grams, square // 2 + batch, 0),
        Needs(weight, 0, filed, _solves(recipe) * square, 0),
        Needs(layer, narrow, filed, 3 * square + (batch + 4 * weight if fitted else 0), 0),
    ]
    if priced:
        logits = 4 * vocabulary * min(tokens, length * sequences_per_backward(length, vocabulary))
        passes.append(Needs(heads * embedding * itemsize, 0, 0, 5 * logits, 0))
        passes.append(Needs(layer, 0, 4 * 8 * hidden**2, 2 * batch, 0))
    if fitted:
        logits = 4 * min(READ_LOGITS, tokens * vocabulary)
        passes.append(Needs(heads * embedding * itemsize, 0, 0, 2 * embedding * 4 + 5 * logits, 0))
    most = max(passes, key=lambda needs: needs.total)
    return replace(most, streams=tokens * ((6 * hidden + widest) if fitted else hidden) * itemsize)


def disk_layer_by_layer(model: Model, itemsize: int, recipe: Recipe) -> int:
    """Bytes beside the output until it is finished: moments, and the streams of `recipe`'s passes."""
    hidden = _hidden(model)
    taken = 8 * sum(block.last.in_features**2 for block in model.blocks)
    if recipe.scorer in PRICED:
        source = within_length(model, recipe.calibration)
        taken += (model.layers + 1) * min(ROWS, source.samples) * source.sequence_length * hidden * itemsize
    if recipe.compensation in SEQUENTIAL:
        taken += 2 * _tokens(model, recipe) * hidden * itemsize
    return taken


def _widest(model: Model) -> int:
    """Input channels of the widest last linear."""
    return max(block.last.in_features for block in model.blocks)


def _hidden(model: Model) -> int:
    return model.config.get_text_config(decoder=True).hidden_size


def _tokens(model: Model, recipe: Recipe) -> int:
    source = within_length(model, recipe.calibration)
    return source.samples * source.sequence_length


def _solves(recipe: Recipe) -> int:
    """Matrices of the widest module, in float64, that scoring it holds at once."""
    return 5 if recipe.scorer in (*PRICED, "osscar", "newton_greedy") else 4


def check_enough(needs: Needs, memory: int, device: torch.device) -> None:
    """Raise InputError when a model cannot be pruned in so many bytes even layer by layer."""
    taken = needs.on(device)
    if taken > memory:
        raise InputError(
            f"Pruning layer by layer takes about {in_words(taken)} and {in_words(memory)} are allowed;"
            " allow more by --memory, or calibrate on fewer or shorter sequences."
        )


def in_words(count: int) -> str:
    """Bytes as people say them, such as 1.54 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
