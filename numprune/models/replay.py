"""Runs a model layer by layer, on inputs of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from numprune.models.adapter import Adapter


@dataclass(frozen=True)
class LayerCalls:
    """What the model hands its decoder layers besides the hidden states, and the states of the first layer."""

    states: list[torch.Tensor]
    arguments: dict[tuple[int, int], tuple[tuple[Any, ...], dict[str, Any]]]

    @classmethod
    def of(cls, model: PreTrainedModel, adapter: Adapter, batches: list[torch.Tensor]) -> LayerCalls:
        found = cls([], {})
        layers = adapter.layers(model)

        def note(index: int, args: tuple[Any, ...], kwargs: dict[str, Any], enough: bool) -> None:
            args, kwargs = list(args), dict(kwargs)
            hidden = kwargs.pop("hidden_states", None)
            if hidden is None:
                hidden = args.pop(0)
            if index == 0:
                found.states.append(hidden.clone())
            found.arguments[len(hidden), index] = (tuple(args), kwargs)
            if enough:
                raise _Enough

        for batch in batches:
            # Batches of one size get the same masks and positions; only their first layer's input differs.
            known = (len(batch), 0) in found.arguments
            watched = layers[:1] if known else layers
            hooks = [
                layer.register_forward_pre_hook(
                    lambda _, args, kwargs, index=index, known=known: note(index, args, kwargs, known),
                    with_kwargs=True,
                )
                for index, layer in enumerate(watched)
            ]
            try:
                with suppress(_Enough):
                    model.base_model(input_ids=batch, use_cache=False)
            finally:
                for hook in hooks:
                    hook.remove()
        return found

    def run(self, layer: nn.Module, state: torch.Tensor, index: int) -> torch.Tensor:
        """A decoder layer's output, (batch, tokens, hidden)."""
        args, kwargs = self.arguments[len(state), index]
        return _first(layer(state, *args, **kwargs))

    def inputs_of(self, linear: nn.Linear, layer: nn.Module, state: torch.Tensor, index: int) -> torch.Tensor:
        """What reaches a linear of a decoder layer, (tokens, in); the layer runs no further."""
        found = []

        def stop(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            found.append(args[0])
            raise _Enough

        hook = linear.register_forward_pre_hook(stop)
        try:
            with suppress(_Enough):
                self.run(layer, state, index)
        finally:
            hook.remove()
        return found[0].reshape(-1, found[0].shape[-1])


class _Enough(Exception):
    """Ends a forward pass that has come as far as it is needed."""


class Seen(NamedTuple):
    """What a module saw and put out last; None before it ran."""

    input: torch.Tensor | None = None
    output: torch.Tensor | None = None


@contextmanager
def watched(modules: Sequence[nn.Module | None]) -> Iterator[list[Seen]]:
    """A list that fills while the modules run, in their order; the place of a None stays empty."""
    seen = [Seen()] * len(modules)

    def note(place: int) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: Any) -> None:
            seen[place] = Seen(args[0] if args else None, _first(output))

        return hook

    hooks = [module.register_forward_hook(note(place)) for place, module in enumerate(modules) if module is not None]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class LayerRuns:
    """Runs one layer on numbered batches; once its attention is settled it runs no more than once for each of them.

    Where the inputs of `last`, the attention's last linear, were asked for before, and the first batch shows that
    nothing follows it, that linear alone is applied to them. The settled attention module is exchanged while a known
    batch runs, so the model must be the caller's own.
    """

    def __init__(
        self, calls: LayerCalls, adapter: Adapter, layer: nn.Module, index: int, last: nn.Linear | None
    ) -> None:
        self._calls, self._layer, self._index, self._last = calls, layer, index, last
        self._owner, self._name = adapter.attention_owner(layer)
        self._settled = False
        self._ends_there: bool | None = None
        self._reached: dict[int, torch.Tensor] = {}
        self._outputs: dict[int, Any] = {}

    def settle(self) -> None:
        """The weights of the attention change no more, and before `last` they have not since its inputs were known."""
        self._settled = True

    def run(self, batch: int, state: torch.Tensor) -> torch.Tensor:
        """The layer's output, (batch, tokens, hidden)."""
        with self._attention(batch, state):
            return self._calls.run(self._layer, state, self._index)

    def inputs_of(self, linear: nn.Linear, batch: int, state: torch.Tensor) -> torch.Tensor:
        """What reaches a linear, (tokens, in); the layer runs no further."""
        with self._attention(batch, state):
            found = self._calls.inputs_of(linear, self._layer, state, self._index)
        if linear is self._last and not self._settled:
            self._reached[batch] = found
        return found

    def attended(self, batch: int) -> torch.Tensor:
        """What the settled attention put out for a batch that has run, (batch, tokens, hidden)."""
        return _first(self._outputs[batch])

    @contextmanager
    def _attention(self, batch: int, state: torch.Tensor) -> Iterator[None]:
        if not self._settled:
            yield
            return
        module = getattr(self._owner, self._name)
        reached = self._reached.pop(batch, None)
        applied = None if reached is None else self._last(reached).reshape(state.shape)

        def record(_: nn.Module, args: Any, output: Any) -> None:
            # Attention probabilities, where they come along, would be far larger than the output.
            self._outputs[batch] = (output[0], *[None] * (len(output) - 1)) if isinstance(output, tuple) else output
            if applied is not None:
                self._ends_there = torch.equal(applied, _first(output))

        if applied is not None and self._ends_there:
            known = next(iter(self._outputs.values()))
            self._outputs[batch] = (applied, *known[1:]) if isinstance(known, tuple) else applied
        if batch in self._outputs:
            setattr(self._owner, self._name, _Repeating(self._outputs[batch]))
            try:
                yield
            finally:
                setattr(self._owner, self._name, module)
            return
        hook = module.register_forward_hook(record)
        try:
            yield
        finally:
            hook.remove()


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


class _Repeating(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output
