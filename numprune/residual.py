"""Compensation against the dense network: each module makes up for everything lost before it.

The paper's compensation fits a pruned module to its own dense output, on dense inputs. Here modules are fitted one
after the other, on the inputs the pruned network really feeds them, so that the residual stream behind the module
is again the dense one. What feeds the units (q, k, v; gate, up) can be fitted in the same way, so that the kept heads
and channels see on these inputs what they saw in the dense network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
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
    keep: Mapping[ModuleKey, Sequence[int]] | None = None,
    damping: float = 0.01,
    batch_size: int = 16,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> dict[ModuleKey, float]:
    """Refit the linears of every module of `pruned`, in place, in the order of the network.

    With X the inputs of a module's last linear in the dense model and R the residual stream that enters the module,
    X' and R' those of the pruned model, and W_S the kept rows (X W convention), the new weight minimises

        ||X' W' - (X W + R - R')||² + gamma ||W' - W_S||²,        gamma = damping * mean(diag X'ᵀX').

    Where a norm stands between the module and the residual stream (Gemma 2 and 3), R - R' is left out. With `keep`,
    the linears that feed the units are fitted before it: with N and N' the inputs of the module in the two models
    and V_S the columns of the kept units, V' minimises ||N' V' - N V_S||² + gamma ||V' - V_S||².

    Modules before the first one that lost units stay as they are. Memory is the residual streams of both models
    on `rows` and one batch's activations of a layer. No layer runs more than four times.

    Args:
        dense: the model before pruning; only read.
        pruned: from `slice_module`, on the same device.
        rows: token ids (sequences, tokens).
        keep: the units `pruned` has kept of each module; None fits last linears only.
        damping: gamma as a fraction of the mean diagonal, not negative.

    Returns:
        Seconds each fitted module took.

    Raises:
        InputError: `damping` is out of range.
        NumericalError: a system cannot be solved, or activations are not finite; the module is named.
        Cancelled: `cancel` was set; `pruned` is then half fitted and must be dropped.
    """
    if not (math.isfinite(damping) and damping >= 0):
        raise InputError(f"damping is {damping}; give 0 or a positive fraction such as 0.01.")
    calls = LayerCalls.of(dense, adapter, list(rows.to(dense.device).split(batch_size)))
    streams, theirs = calls.states, [state.clone() for state in calls.states]
    full = {block.key: block for block in adapter.blocks(dense)}
    left = {block.key: block for block in adapter.blocks(pruned)}
    touched, drifted, seconds = False, False, {}
    layers = list(zip(adapter.layers(dense), adapter.layers(pruned), strict=True))
    for index, (layer, narrow) in enumerate(layers):
        keys = [ModuleKey(index, kind) for kind in KINDS]
        whole, thin = [full.get(key) for key in keys], [left.get(key) for key in keys]
        targets = []
        for state in streams:
            check_cancelled(cancel)
            targets.append(_Targets.of(layer, state, calls, index, whole))
        for place, key in enumerate(keys):
            drifted, block = touched, left.get(key)
            touched = touched or (key in full and (block is None or block.units < full[key].units))
            if block is None or not touched:
                continue
            started = time.monotonic()
            # Before anything is lost the inputs are the dense ones, and so would the weights be.
            if keep is not None and drifted:
                system = _System([linear for linear, _ in block.inputs], key)
                weight = _kept_rows(full[key], keep[key])
                entry, narrow_entry = full[key].inputs[0][0], block.inputs[0][0]
                for state, other in zip(streams, theirs, strict=True):
                    check_cancelled(cancel)
                    seen = calls.inputs_of(entry, layer, state, index)
                    system.add(calls.inputs_of(narrow_entry, narrow, other, index), seen.float() @ weight.T)
                system.solve(damping)
            system = _System([block.last], key)
            for state, target in zip(theirs, targets, strict=True):
                check_cancelled(cancel)
                with _tapped(thin[:1]) as taps:
                    inputs = calls.inputs_of(block.last, narrow, state, index)
                wanted = target.of_place(place, state, taps[0])
                system.add(inputs, wanted if block.last.bias is None else wanted - block.last.bias)
            system.solve(damping)
            seconds[key] = time.monotonic() - started
        theirs = [calls.run(narrow, state, index) for state in theirs]
        streams = [target.end for target in targets]
        if progress is not None:
            progress(index + 1, len(layers), "fitting to the dense network")
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


@dataclass
class _Tap:
    """What a module's last linear put out; None where the module is empty."""

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
            tap.output = output

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


@dataclass(frozen=True)
class _Targets:
    """What the modules of a layer are fitted to, on one batch.

    Attributes:
        streams: the dense residual stream behind the attention and behind the MLP; None where norms stand between
            the modules and the stream.
        outputs: of the dense last linears, used where there are no streams.
        end: what leaves the layer.
    """

    streams: tuple[torch.Tensor, torch.Tensor] | None
    outputs: tuple[torch.Tensor | None, ...]
    end: torch.Tensor

    @classmethod
    def of(
        cls, layer: nn.Module, state: torch.Tensor, calls: LayerCalls, index: int, blocks: list[Block | None]
    ) -> _Targets:
        with _tapped(blocks) as taps:
            end = calls.run(layer, state, index)
        middle = taps[0].behind(state)
        difference = float((taps[1].behind(middle) - end).abs().max())
        if difference <= 1e-2 * float(end.abs().max()):
            return cls((middle, end), (None, None), end)
        return cls(None, tuple(tap.output for tap in taps), end)

    def of_place(self, place: int, state: torch.Tensor, attention: _Tap) -> torch.Tensor:
        """What the attention (0) or the MLP (1) of the pruned layer should put out when `state` enters the layer."""
        if self.streams is None:
            return self.outputs[place]
        return self.streams[place] - (state if place == 0 else attention.behind(state))


def _kept_rows(block: Block, kept: Sequence[int]) -> torch.Tensor:
    """The rows of a module's input linears that belong to the kept units, one linear after the other, float32."""
    rows = [
        linear.weight[torch.cat([section.indices(kept) for section in sections]).to(linear.weight.device)]
        for linear, sections in block.inputs
    ]
    return torch.cat(rows).float()


class _System:
    """The normal equations of linears that share their inputs, streamed."""

    def __init__(self, linears: list[nn.Linear], key: ModuleKey) -> None:
        self.linears, self.key = linears, key
        channels, device = linears[0].in_features, linears[0].weight.device
        outputs = sum(linear.out_features for linear in linears)
        self.moments = GramAccumulator(channels, device)
        self.product = torch.zeros(channels, outputs, dtype=torch.float64, device=device)

    def add(self, inputs: torch.Tensor, target: torch.Tensor) -> None:
        """`target` (..., out) holds what the linears should put out, one after the other, without their biases."""
        product = inputs.float().T @ target.reshape(-1, target.shape[-1]).float()
        if not (self.moments.add(inputs) and bool(torch.isfinite(product).all())):
            raise NumericalError(
                f"Fitting {self.key}: activations are not finite; load the model in float32 or bfloat16."
            )
        self.product += product

    def solve(self, damping: float) -> None:
        """Give the linears their new weights."""
        gram = self.moments.finish().gram
        start = torch.cat([to_float64(linear.weight) for linear in self.linears]).T
        gamma = damping * gram.diagonal().mean()
        try:
            factor, _ = damped_cholesky(gram, damping)
        except NumericalError as error:
            raise NumericalError(f"Fitting {self.key}: {error}") from error
        solved = torch.cholesky_solve(self.product + gamma * start, factor).T
        for linear, weight in zip(
            self.linears, solved.split([linear.out_features for linear in self.linears]), strict=True
        ):
            linear.weight.copy_(weight)
