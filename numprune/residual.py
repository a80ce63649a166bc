"""Compensation against the dense network: each module makes up for everything lost before it.

The paper's compensation fits a pruned module to its own dense output, on dense inputs. Here modules are fitted one
after the other, on the inputs the pruned network really feeds them, so that the residual stream behind the module
is again the dense one. What feeds the units (q, k, v; gate, up) can be fitted in the same way, so that the kept heads
and channels see on these inputs what they saw in the dense network, and so can the gains of the last norm.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from numprune.calibration.statistics import GramAccumulator
from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.last_norm import fit_last_norm
from numprune.linalg import damped_cholesky, to_float64
from numprune.models.adapter import KINDS, Adapter, Block, ModuleKey
from numprune.models.replay import LayerCalls, LayerRuns, watched

SCARCITY = 100
"""What the damping grows by, in multiples of itself, where there is one token for every input channel."""


@dataclass(frozen=True)
class Fit:
    """What a fit took and left out.

    Attributes:
        seconds: each fitted module took.
        notes: sentences for the report.
    """

    seconds: dict[ModuleKey, float]
    notes: list[str]


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
) -> Fit:
    """Refit the linears of every module of `pruned`, in place, in the order of the network.

    With X the inputs of a module's last linear in the dense model and R the residual stream that enters the module,
    X' and R' those of the pruned model, and W_S the kept rows (X W convention), the new weight minimises

        ||X' W' - (X W + R - R')||² + gamma ||W' - W_S||²,        gamma = damping (1 + 100 c/n) mean(diag X'ᵀX'),

    with c the columns and n the rows of X': the fewer tokens there are for every weight, the less they may change it.
    Where a norm stands between the module and the residual stream (Gemma 2 and 3), R - R' is left out. With `keep`,
    the linears that feed the units are fitted before it: with N and N' the inputs of the module in the two models
    and V_S the columns of the kept units, V' minimises ||N' V' - N V_S||² + gamma ||V' - V_S||², and at the end the
    gains of the last norm are fitted (`numprune.last_norm`).

    Modules before the first one that lost units stay as they are. Memory is six times the residual stream on `rows`:
    of both models, between a layer's modules, at the entry of its MLP and before the last linear of its attention. No
    attention of either model runs more than twice.

    Args:
        dense: the model before pruning; only read.
        pruned: from `slice_module`, on the same device.
        rows: token ids (sequences, tokens).
        keep: the units `pruned` has kept of each module; None fits last linears only.
        damping: gamma as a fraction of the mean diagonal where tokens are plenty; not negative.

    Raises:
        InputError: `damping` is out of range.
        NumericalError: a system cannot be solved, or activations are not finite; the module is named.
        Cancelled: `cancel` was set; `pruned` is then half fitted and must be dropped.
    """
    if not (math.isfinite(damping) and damping >= 0):
        raise InputError(f"damping is {damping}; give 0 or a positive fraction such as 0.01.")
    batches = list(rows.to(dense.device).split(batch_size))
    calls = LayerCalls.of(dense, adapter, batches)
    streams, theirs = calls.states, [state.clone() for state in calls.states]
    full = {block.key: block for block in adapter.blocks(dense)}
    left = {block.key: block for block in adapter.blocks(pruned)}
    touched, seconds, notes = False, {}, []
    layers = list(zip(adapter.layers(dense), adapter.layers(pruned), strict=True))
    for index, (layer, narrow) in enumerate(layers):
        keys = [ModuleKey(index, kind) for kind in KINDS]
        targets = []
        for state in streams:
            check_cancelled(cancel)
            targets.append(_Targets.of(adapter, layer, full.get(keys[1]), state, calls, index))
        runs = LayerRuns(calls, adapter, narrow, index, left[keys[0]].last if keys[0] in left else None)
        for place, key in enumerate(keys):
            if place == 1:
                runs.settle()
            drifted, block = touched, left.get(key)
            touched = touched or (key in full and (block is None or block.units < full[key].units))
            if block is None or not touched:
                continue
            started = time.monotonic()
            # Before anything is lost the inputs are the dense ones, and so would the weights be.
            if keep is not None and drifted:
                system = _System([linear for linear, _ in block.inputs], key)
                weight = _kept_rows(full[key], keep[key])
                for batch, target in enumerate(targets):
                    check_cancelled(cancel)
                    seen = target.entering
                    if place == 0:
                        seen = calls.inputs_of(full[key].inputs[0][0], layer, streams[batch], index)
                    reached = runs.inputs_of(block.inputs[0][0], batch, theirs[batch])
                    system.add(reached, seen.reshape(-1, seen.shape[-1]).float() @ weight.T)
                system.solve(damping)
            system = _System([block.last], key)
            for batch, (state, target) in enumerate(zip(theirs, targets, strict=True)):
                check_cancelled(cancel)
                inputs = runs.inputs_of(block.last, batch, state)
                wanted = target.of_place(place, state if place == 0 else state + runs.attended(batch))
                system.add(inputs, wanted if block.last.bias is None else wanted - block.last.bias)
            system.solve(damping)
            seconds[key] = time.monotonic() - started
        theirs = [runs.run(batch, state) for batch, state in enumerate(theirs)]
        streams = [target.end for target in targets]
        if progress is not None:
            progress(index + 1, len(layers), "fitting to the dense network")
    if keep is not None and touched:
        note = fit_last_norm(dense, pruned, adapter, batches, streams, theirs, damping=damping, cancel=cancel)
        notes += [note] if note else []
    return Fit(seconds, notes)


@dataclass(frozen=True)
class _Targets:
    """What the modules of a layer are fitted to, on one batch of the dense model.

    Attributes:
        streams: the residual stream behind the attention and behind the MLP; None where norms stand between
            the modules and the stream.
        outputs: of the two modules, used where there are no streams.
        entering: what the MLP's first linears see; None where the layer has no MLP.
        end: what leaves the layer.
    """

    streams: tuple[torch.Tensor, torch.Tensor] | None
    outputs: tuple[torch.Tensor | None, torch.Tensor | None]
    entering: torch.Tensor | None
    end: torch.Tensor

    @classmethod
    def of(
        cls, adapter: Adapter, layer: nn.Module, mlp: Block | None, state: torch.Tensor, calls: LayerCalls, index: int
    ) -> _Targets:
        attention = getattr(*adapter.attention_owner(layer))
        with watched([attention, mlp and mlp.last, mlp and mlp.inputs[0][0]]) as seen:
            end = calls.run(layer, state, index)
        outputs, entering = (seen[0].output, seen[1].output), seen[2].input
        middle = state + outputs[0]
        # OPT runs its MLP on flattened tokens.
        behind = middle if outputs[1] is None else middle + outputs[1].reshape(state.shape)
        if float((behind - end).abs().max()) <= 1e-2 * float(end.abs().max()):
            return cls((middle, end), (None, None), entering, end)
        return cls(None, outputs, entering, end)

    def of_place(self, place: int, stream: torch.Tensor) -> torch.Tensor:
        """What the attention (0) or the MLP (1) of the pruned layer should add to the `stream` it meets."""
        return self.outputs[place] if self.streams is None else self.streams[place] - stream


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
        found = self.moments.finish()
        gram, damping = found.gram, damping * (1 + SCARCITY * self.linears[0].in_features / found.tokens)
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
