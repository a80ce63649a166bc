"""Sizes of a model, counted: parameters, bytes of weights and cache, operations per token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from transformers import DynamicCache

from numprune.errors import InputError
from numprune.models.adapter import Block
from numprune.models.model import Model
from numprune.plan.plan import PruningPlan


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model, exact.

    Attributes:
        parameters: of the whole model.
        bytes: memory of the weights.
        kv_bytes: memory of keys and values that one token adds to the cache of a sequence, over all layers. A
            layer with a sliding window adds them only until its window is full.
        flops: floating-point operations, two per multiply-add, of the matrix products that decode one token after
            `context` others: every linear layer and the output head, and attention over the cached keys and
            values, at most a window of them in layers that have one. Norms, activations, softmax and rotary
            embeddings are not counted.
        context: tokens in the cache when the token is decoded.
    """

    parameters: int
    bytes: int
    kv_bytes: int
    flops: int
    context: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sizes(model: Model, plan: PruningPlan | None = None, *, context: int = 1000) -> Sizes:
    """Sizes of `model`, or of what `prune` would make of it.

    Nothing is pruned for it and no weight is read, so it is quick enough to be shown while a slider moves.

    Args:
        plan: from `allocate`, for this model; None for the model as it is.
        context: tokens in the cache when the token whose operations are counted is decoded; 0 for the first.

    Raises:
        InputError: the plan is another model's, or `context` is negative.
    """
    if context < 0:
        raise InputError(f"context is {context}; give 0 or a positive number of tokens.")
    blocks = model.blocks
    if plan is not None and plan.units != {block.key: block.units for block in blocks}:
        raise InputError(f"The plan belongs to another model than {model.name}; make it for this one.")

    parameters, weight_bytes = model.parameters, model.bytes
    used = {*model.adapter.decoder(model.module).modules(), model.module.get_output_embeddings()}
    multiply_adds = sum(m.in_features * m.out_features for m in used if isinstance(m, nn.Linear))
    keys = _keys(model, context)
    # An emptied attention caches one number each for key and value, see EmptyAttention.
    cached = dict.fromkeys(range(model.layers), 2)
    for block in blocks:
        kept = block.units if plan is None else len(plan.keep[block.key])
        removed = block.units - kept
        removed_parameters = removed * block.cost + (0 if kept else block.remainder)
        parameters -= removed_parameters
        weight_bytes -= removed_parameters * block.last.weight.element_size()
        multiply_adds -= removed * _multiply_adds(block)
        if block.key.kind == "attention" and kept:
            cached[block.key.layer] = kept * (_rows(block) - block.width)
            # Queries are as wide as the input of the last linear; they meet every key and weigh every value.
            multiply_adds += 2 * kept * block.width * keys[block.key.layer]
    return Sizes(
        parameters=parameters,
        bytes=weight_bytes,
        kv_bytes=sum(cached.values()) * model.dtype.itemsize,
        flops=2 * multiply_adds,
        context=context,
    )


def _rows(block: Block) -> int:
    """Out-features of the block's inputs that belong to one unit: of queries, keys and values in attention."""
    return sum(section.width for _, sections in block.inputs for section in sections)


def _multiply_adds(block: Block) -> int:
    """Multiply-adds of the block's linears, one unit's share for one token."""
    inputs = sum(linear.in_features * section.width for linear, sections in block.inputs for section in sections)
    return inputs + block.width * block.last.out_features


def _keys(model: Model, context: int) -> list[int]:
    """Keys that a token after `context` others attends to in each layer, its own included."""
    # transformers decides in this class which layers have a window.
    layers = DynamicCache(config=model.config).layers
    return [min(context + 1, layer.sliding_window) if layer.is_sliding else context + 1 for layer in layers]
