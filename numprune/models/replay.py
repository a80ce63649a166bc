"""Runs a model layer by layer, on inputs of one's own.

Hooks are used, so the models given here must be the caller's own (`numprune.models.model.twin`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from numprune.models.adapter import Adapter
from numprune.models.hooks import Enough, first, hooked


@dataclass(frozen=True)
class LayerCalls:
    """What the model hands its decoder layers besides the hidden states, and the states of the first layer."""

    config: Any
    states: list[torch.Tensor]
    arguments: dict[tuple[int, int], tuple[tuple[Any, ...], dict[str, Any]]]

    @classmethod
    def of(cls, model: PreTrainedModel, adapter: Adapter, batches: list[torch.Tensor]) -> LayerCalls:
        calls = cls(model.config, [], {})
        layers = adapter.layers(model)

        def note(index: int, args: tuple[Any, ...], kwargs: dict[str, Any], enough: bool) -> None:
            args, kwargs = list(args), dict(kwargs)
            hidden = kwargs.pop("hidden_states", None)
            if hidden is None:
                hidden = args.pop(0)
            if index == 0:
                calls.states.append(hidden.clone())
            calls.arguments[len(hidden), index] = (tuple(args), kwargs)
            if enough:
                raise Enough

        for batch in batches:
            # Batches of one size get the same masks and positions; only their first layer's input differs.
            known = (len(batch), 0) in calls.arguments
            watched = layers[:1] if known else layers
            notes = {
                layer: lambda args, kwargs, index=index, known=known: note(index, args, kwargs, known)
                for index, layer in enumerate(watched)
            }
            with hooked(before=notes):
                model.base_model(input_ids=batch, use_cache=False)
        return calls

    @classmethod
    def without_layers(cls, model: PreTrainedModel, adapter: Adapter, batches: list[torch.Tensor]) -> LayerCalls:
        """The same of a model whose layers have no values: `model` is the caller's own, and its layers are replaced
        by stand-ins that pass on what they are given."""
        calls = cls(model.config, [], {})
        layers = adapter.layers(model)
        for index, layer in enumerate(layers):
            layers[index] = _StandIn(calls, layer, index)
        for batch in batches:
            try:
                model.base_model(input_ids=batch, use_cache=False)
            except Enough:
                continue
        return calls

    def run(self, layer: nn.Module, state: torch.Tensor, index: int) -> torch.Tensor:
        """A decoder layer's output, (batch, tokens, hidden)."""
        args, kwargs = self.arguments[len(state), index]
        return first(layer(state, *args, **kwargs))

    def inputs_of(self, linear: nn.Linear, layer: nn.Module, state: torch.Tensor, index: int) -> torch.Tensor:
        """What reaches a linear of a decoder layer, (tokens, in); the layer runs no further."""
        reached = []

        def stop(args: tuple[torch.Tensor, ...], _: dict[str, Any]) -> None:
            reached.append(args[0])
            raise Enough

        with hooked(before={linear: stop}):
            self.run(layer, state, index)
        return reached[0].reshape(-1, reached[0].shape[-1])

    def output_of(self, module: nn.Module, layer: nn.Module, state: torch.Tensor, index: int) -> torch.Tensor:
        """What a module of a decoder layer puts out, (batch, tokens, out); the layer runs no further."""
        outputs = []

        def stop(_: tuple[Any, ...], output: Any) -> None:
            outputs.append(first(output))
            raise Enough

        with hooked(after={module: stop}):
            self.run(layer, state, index)
        return outputs[0]


class Ending:
    """What a model does behind its last layer: from a residual stream to logits.

    Attributes:
        model: the caller's own; its layers are replaced by stand-ins.
    """

    def __init__(self, model: PreTrainedModel, adapter: Adapter) -> None:
        self.model, self._given = model, _Given()
        layers = adapter.layers(model)
        for index, layer in enumerate(layers):
            layers[index] = _resembling(layer, self._given if index == 0 else _Given())

    def logits(self, rows: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
        """Logits (sequences, tokens, vocabulary) of the residual stream (sequences, tokens, hidden) of token ids."""
        self._given.state = stream
        try:
            return self.model(input_ids=rows, use_cache=False).logits
        finally:
            self._given.state = None


class _Given(nn.Module):
    """Puts out what it was given beforehand, or passes on what comes in."""

    state: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states if self.state is None else self.state


def _resembling(layer: nn.Module, stand_in: nn.Module) -> nn.Module:
    """The stand-in with the settings of a layer: some models ask their layers which kind of attention they have."""
    for name, value in vars(layer).items():
        if isinstance(value, str | int | bool) and name != "training":
            setattr(stand_in, name, value)
    return stand_in


class _StandIn(nn.Module):
    """Notes what a decoder layer is called with."""

    def __init__(self, calls: LayerCalls, layer: nn.Module, index: int) -> None:
        super().__init__()
        self.calls, self.index = calls, index
        _resembling(layer, self)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        args, kwargs = list(args), dict(kwargs)
        hidden = kwargs.pop("hidden_states", None)
        if hidden is None:
            hidden = args.pop(0)
        known = (len(hidden), self.index) in self.calls.arguments
        if self.index == 0:
            self.calls.states.append(hidden.clone())
        self.calls.arguments[len(hidden), self.index] = (tuple(args), kwargs)
        if known:
            # Batches of one size get the same masks and positions; only their first layer's input differs.
            raise Enough
        return hidden


class Seen(NamedTuple):
    """What a module saw and put out last; None before it ran."""

    input: torch.Tensor | None = None
    output: torch.Tensor | None = None


@contextmanager
def watched(modules: Sequence[nn.Module | None]) -> Iterator[list[Seen]]:
    """A list that fills while the modules run, in their order; the entry of a None stays empty."""
    seen = [Seen()] * len(modules)

    def note(index: int) -> Any:
        def record(args: tuple[torch.Tensor, ...], output: Any) -> None:
            seen[index] = Seen(args[0] if args else None, first(output))

        return record

    with hooked(after={module: note(index) for index, module in enumerate(modules) if module is not None}):
        yield seen


class KnownAttention(nn.Module):
    """Stands for an attention whose output is known."""

    def __init__(self) -> None:
        super().__init__()
        self.output: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, None]:
        return self.output, None


def behind_attention(adapter: Adapter, layer: nn.Module) -> tuple[nn.Module, KnownAttention]:
    """A copy of a decoder layer that puts out a known attention, and the module that holds what it is.

    All other parts are those of the layer itself, whose weights may go on changing.
    """
    owner, name = adapter.attention_owner(layer)
    known = KnownAttention()
    parts = {id(part): part for part in layer.children()} | {id(getattr(owner, name)): known}
    return copy.deepcopy(layer, parts), known
