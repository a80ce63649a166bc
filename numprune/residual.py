"""Compensation against the dense residual stream: each module makes up for everything lost before it.

The paper's compensation fits a pruned module to its own dense output, on dense inputs. Here modules are fitted one
after the other, on the inputs the pruned network really feeds them, so that the residual stream behind the module
is again the dense one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from numprune.calibration.statistics import GramAccumulator
from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.linalg import damped_cholesky, to_float64
from numprune.models.adapter import KINDS, Adapter, Block, ModuleKey


@torch.no_grad()
def fit_to_residual(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    adapter: Adapter,
    rows: torch.Tensor,
    *,
    damping: float = 0.01,
    batch_size: int = 16,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> dict[ModuleKey, float]:
    """Refit the last linear of every module of `pruned`, in place, in the order of the network.

    With X the inputs of a module in the dense model and R the residual stream that enters it, X' and R' those of
    the pruned model, and W_S the kept columns (X W convention), the new weight minimises

        ||X' W' - (X W + R - R')||² + gamma ||W' - W_S||²,        gamma = damping * mean(diag X'ᵀX').

    Modules before the first one that lost units stay as they are. Memory is the residual streams of both models
    on `rows` and one batch's activations of a layer; a pruned layer runs three times, a dense one once.

    Args:
        dense: the model before pruning; only read.
        pruned: from `slice_module`, on the same device.
        rows: token ids (sequences, tokens).
        damping: gamma as a fraction of the mean diagonal, not negative.

    Returns:
        Seconds each fitted module took.

    Raises:
        InputError: `damping` is out of range, or a layer's output is not its input plus its modules' outputs.
        NumericalError: a system cannot be solved, or activations are not finite; the module is named.
        Cancelled: `cancel` was set; `pruned` is then half fitted and must be dropped.
    """
    if not (math.isfinite(damping) and damping >= 0):
        raise InputError(f"damping is {damping}; give 0 or a positive fraction such as 0.01.")
    calls = LayerCalls.of(dense, adapter, list(rows.to(dense.device).split(batch_size)))
    streams, theirs = calls.states, [state.clone() for state in calls.states]
    full = {block.key: block for block in adapter.blocks(dense)}
    left = {block.key: block for block in adapter.blocks(pruned)}
    touched, seconds = False, {}
    layers = list(zip(adapter.layers(dense), adapter.layers(pruned), strict=True))
    for index, (layer, narrow) in enumerate(layers):
        keys = [ModuleKey(index, kind) for kind in KINDS]
        targets = []
        for state in streams:
            check_cancelled(cancel)
            targets.append(_streams_behind(layer, state, calls, index, [full.get(key) for key in keys]))
        for place, key in enumerate(keys):
            block = left.get(key)
            touched = touched or (key in full and (block is None or block.units < full[key].units))
            if block is None or not touched:
                continue
            started = time.monotonic()
            system = _System(block.last)
            for state, target in zip(theirs, targets, strict=True):
                check_cancelled(cancel)
                with _tapped([left.get(each) for each in keys]) as taps:
                    calls.run(narrow, state, index)
                entering = state if place == 0 else taps[0].behind(state)
                system.add(taps[place].inputs, target[place] - entering, key)
            block.last.weight.copy_(system.solve(damping, key))
            seconds[key] = time.monotonic() - started
        theirs = [calls.run(narrow, state, index) for state in theirs]
        streams = [target[-1] for target in targets]
        if progress is not None:
            progress(index + 1, len(layers), "fitting the residual stream")
    return seconds


@dataclass
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
        output = layer(state, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output


class _Enough(Exception):
    """Ends a forward pass whose first layer has been reached."""


@dataclass
class _Tap:
    """What went into a module's last linear and what it added to the residual stream."""

    inputs: torch.Tensor | None = None
    output: torch.Tensor | None = None

    def behind(self, state: torch.Tensor) -> torch.Tensor:
        """The residual stream behind the module."""
        # OPT runs its MLP on flattened tokens.
        return state if self.output is None else state + self.output.reshape(state.shape)


@contextmanager
def _tapped(blocks: list[Block | None]) -> Iterator[list[_Tap]]:
    taps = [_Tap() for _ in blocks]

    def fill(tap: _Tap) -> Any:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            tap.inputs, tap.output = args[0], output

        return hook

    hooks = [
        block.last.register_forward_hook(fill(tap))
        for block, tap in zip(blocks, taps, strict=True)
        if block is not None
    ]
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()


def _streams_behind(
    layer: nn.Module, state: torch.Tensor, calls: LayerCalls, index: int, blocks: list[Block | None]
) -> list[torch.Tensor]:
    """The dense residual stream behind the attention and behind the MLP of a layer."""
    with _tapped(blocks) as taps:
        end = calls.run(layer, state, index)
    middle = taps[0].behind(state)
    difference = float((taps[1].behind(middle) - end).abs().max())
    if not difference <= 1e-2 * float(end.abs().max()):
        raise InputError(
            f"Layer {index} changes what its modules add to the residual stream (norms behind them, as in Gemma 2),"
            " so they cannot be fitted to it; use compensation 'paper'."
        )
    return [middle, end]


class _System:
    """The normal equations of one module, streamed."""

    def __init__(self, last: nn.Linear) -> None:
        self.last = last
        self.moments = GramAccumulator(last.in_features, last.weight.device)
        self.product = torch.zeros(last.in_features, last.out_features, dtype=torch.float64, device=last.weight.device)

    def add(self, inputs: torch.Tensor, target: torch.Tensor, key: ModuleKey) -> None:
        x, y = inputs.reshape(-1, inputs.shape[-1]), target.reshape(-1, target.shape[-1])
        if self.last.bias is not None:
            y = y - self.last.bias
        product = x.float().T @ y.float()
        if not (self.moments.add(x) and bool(torch.isfinite(product).all())):
            raise NumericalError(f"Fitting {key}: activations are not finite; load the model in float32 or bfloat16.")
        self.product += product

    def solve(self, damping: float, key: ModuleKey) -> torch.Tensor:
        """(out, in) float64."""
        gram, start = self.moments.finish().gram, to_float64(self.last.weight).T
        gamma = damping * gram.diagonal().mean()
        try:
            factor, _ = damped_cholesky(gram, damping)
        except NumericalError as error:
            raise NumericalError(f"Fitting {key}: {error}") from error
        return torch.cholesky_solve(self.product + gamma * start, factor).T
