"""Compensation against the dense network: each module makes up for everything lost before it.

The paper's compensation fits a pruned module to its own dense output, on dense inputs. Here modules are fitted one
after the other, on the inputs the pruned network really feeds them, so that the residual stream behind the module
is again the dense one. What feeds the units (q, k, v; gate, up) can be fitted in the same way, so that the kept heads
and channels see on these inputs what they saw in the dense network, and so can the gains of the last norm.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from numprune.calibration.statistics import GramAccumulator
from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.fitting.last_norm import fit_last_norm
from numprune.linalg import damped_cholesky, to_float64
from numprune.models.adapter import Adapter, Block
from numprune.models.batches import FIT_SEQUENCES
from numprune.models.model import twin
from numprune.models.replay import KnownAttention, LayerCalls, behind_attention, watched
from numprune.plan.keys import KINDS, Kind, ModuleKey
from numprune.ranks import Ranks, joined


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
def fit_to_dense(
    dense: PreTrainedModel,
    pruned: PreTrainedModel,
    adapter: Adapter,
    rows: torch.Tensor,
    *,
    keep: Mapping[ModuleKey, Sequence[int]] | None = None,
    gone: Collection[int] = (),
    damping: float = 0.01,
    scarcity: float = 500.0,
    batch_size: int = FIT_SEQUENCES,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Fit:
    """Refit the linears of every module of `pruned`, in place, in the order of the network.

    With X the inputs of a module's last linear in the dense model and R the residual stream that enters the module,
    X' and R' those of the pruned model, and W_S the kept rows (X W convention), the new weight minimises

        ||X' W' - (X W + R - R')||² + gamma ||W' - W_S||²,        gamma = damping (1 + scarcity c/n) mean(diag X'ᵀX'),

    with c the columns and n the rows of X': the fewer tokens there are for every weight, the less they may change it.
    Where a norm stands between the module and the residual stream (Gemma 2 and 3), R - R' is left out. With `keep`,
    the linears that feed the units are fitted before it: with N and N' the inputs of the module in the two models
    and V_S the columns of the kept units, V' minimises ||N' V' - N V_S||² + gamma ||V' - V_S||², and at the end the
    gains of the last norm are fitted (`numprune.fitting.last_norm`).

    Modules before the first one that lost units stay as they are. Memory is six times the residual stream on `rows`
    (of both models, between a layer's modules, at the entry of its MLP and behind its attention) and what reaches the
    last linear of one module. No linear of either model runs twice on a fitted input. Several processes share the
    sequences, and all solve every system.

    Args:
        dense: the model before pruning; only read.
        pruned: from `slice_module`, on the same device.
        rows: token ids (sequences, tokens).
        keep: the units `pruned` has kept of each module; None fits last linears only.
        gone: layers of `dense` that `pruned` has not.
        damping: gamma as a fraction of the mean diagonal where tokens are plenty; not negative.
        scarcity: what it grows by, in multiples of itself, where there is one token for every column; not negative.

    Raises:
        InputError: `damping` or `scarcity` is out of range, or there are fewer sequences than processes.
        NumericalError: a system cannot be solved, or activations are not finite; the module is named.
        Cancelled: `cancel` was set; `pruned` is then half fitted and must be dropped.
    """
    check_damping(damping, scarcity)
    # Hooks are put on it, and others may run `dense` meanwhile.
    dense = twin(dense)
    left = iter(adapter.layers(pruned))
    layers = [(layer, None if index in gone else next(left)) for index, layer in enumerate(adapter.layers(dense))]
    ranks = joined()
    numbers = ranks.batches(len(rows), batch_size)
    batches = [rows[own].to(dense.device) for own in numbers]
    calls = LayerCalls.without_layers(dense, adapter, batches)
    fit = NetworkFit(
        calls, adapter, dense.device, keep=keep, damping=damping, scarcity=scarcity, ranks=ranks, cancel=cancel
    )
    for index, (layer, narrow_layer) in enumerate(layers):
        fit.fit(index, layer, narrow_layer)
        if progress is not None:
            progress(index + 1, len(layers), "fitting to the dense network")
    notes = []
    if keep is not None and fit.touched:
        note = fit_last_norm(
            dense,
            pruned,
            adapter,
            batches,
            fit.dense_stream,
            fit.pruned_stream,
            damping=damping,
            numbers=numbers,
            ranks=ranks,
            cancel=cancel,
        )
        notes += [note] if note else []
    return Fit(fit.seconds, notes)


def check_damping(damping: float, scarcity: float) -> None:
    """Raise InputError for a damping or a scarcity that is out of range."""
    if not (math.isfinite(damping) and damping >= 0):
        raise InputError(f"damping is {damping}; give 0 or a positive fraction such as 0.01.")
    if not (math.isfinite(scarcity) and scarcity >= 0):
        raise InputError(f"scarcity is {scarcity}; give 0 or a positive number such as 500.")


class NetworkFit:
    """`fit_to_dense`, a pair of layers at a time, in the order of the network.

    Attributes:
        dense_stream, pruned_stream: the residual streams behind the layers so far, in batches, where `calls` had the
            first one, which may be elsewhere than on the device that layers are computed on.
        touched: whether any module so far has lost units.
        seconds: each fitted module took.
    """

    def __init__(
        self,
        calls: LayerCalls,
        adapter: Adapter,
        device: torch.device,
        *,
        keep: Mapping[ModuleKey, Sequence[int]] | None,
        damping: float,
        scarcity: float,
        ranks: Ranks,
        cancel: CancelEvent | None = None,
    ) -> None:
        self.ranks = ranks
        self.calls, self.adapter, self.device = calls, adapter, device
        self.keep, self.damping, self.scarcity, self.cancel = keep, damping, scarcity, cancel
        self.dense_stream, self.pruned_stream = calls.states, list(calls.states)
        self.touched = False
        self.seconds: dict[ModuleKey, float] = {}

    def fit(self, index: int, layer: nn.Module, narrow_layer: nn.Module | None) -> None:
        """Fit what is left of a decoder layer, in place, and bring both streams behind it.

        Args:
            index: of the layer in the dense model.
            narrow_layer: None where nothing is left.
        """
        if narrow_layer is None:
            self.touched = True
            self.dense_stream = [self._behind(layer, state, index) for state in self.dense_stream]
            return
        config = self.calls.config
        whole, narrow = (
            {block.key.kind: block for block in self.adapter.layer_blocks(each, index, config)}
            for each in (layer, narrow_layer)
        )
        fit = _LayerFit(self, layer, narrow_layer, index, whole, narrow)
        fit.see_dense(self.dense_stream)
        for kind in KINDS:
            key = ModuleKey(index, kind)
            drifted = self.touched
            lost = kind in whole and (kind not in narrow or narrow[kind].units < whole[kind].units)
            self.touched = self.touched or lost
            if kind in narrow and self.touched:
                started = time.monotonic()
                # Before anything is lost the inputs are the dense ones, and so would the weights be.
                if self.keep is not None and drifted:
                    fit.fit_inputs(kind, self.keep[key], self.dense_stream, self.pruned_stream)
                fit.fit_last(kind, self.pruned_stream)
                self.seconds[key] = time.monotonic() - started
            if kind == "attention":
                fit.attend(self.pruned_stream)
        self.pruned_stream = fit.leave(self.pruned_stream)
        self.dense_stream = [target.end for target in fit.targets]

    def _behind(self, layer: nn.Module, state: torch.Tensor, index: int) -> torch.Tensor:
        """What leaves a layer of the dense model, where the streams lie."""
        check_cancelled(self.cancel)
        return self.calls.run(layer, state.to(self.device), index).to(state.device)


@dataclass(frozen=True)
class _Target:
    """What the modules of a layer are fitted to, on one batch of the dense model.

    Attributes:
        streams: the residual stream behind the attention and behind the MLP; None where norms stand between
            the modules and the stream.
        outputs: of the two modules, where there are no streams.
        entering: what the MLP's first linears see; None where the layer has no MLP.
        end: what leaves the layer.
    """

    streams: dict[Kind, torch.Tensor] | None
    outputs: dict[Kind, torch.Tensor | None] | None
    entering: torch.Tensor | None
    end: torch.Tensor

    def of(self, kind: Kind, stream: torch.Tensor) -> torch.Tensor:
        """What a module of the pruned layer should add to the `stream` it meets."""
        if self.streams is None:
            return self.outputs[kind].to(stream.device)
        return self.streams[kind].to(stream.device) - stream


class _LayerFit:
    """One layer of both models while its modules are fitted: attention first, then `attend`, then the MLP.

    What is kept lies where the streams lie; a batch at a time is brought to the device.
    """

    def __init__(
        self,
        run: NetworkFit,
        layer: nn.Module,
        narrow_layer: nn.Module,
        index: int,
        whole: dict[Kind, Block],
        narrow: dict[Kind, Block],
    ) -> None:
        self.calls, self.adapter, self.device, self.cancel = run.calls, run.adapter, run.device, run.cancel
        self.damping, self.scarcity, self.ranks = run.damping, run.scarcity, run.ranks
        self.home = run.dense_stream[0].device
        self.index, self.layer, self.narrow_layer = index, layer, narrow_layer
        self.whole, self.narrow = whole, narrow
        self.targets: list[_Target] = []
        self.reached: dict[Kind, list[torch.Tensor]] = {kind: [] for kind in KINDS}
        """What reaches the last linear of a module whose other parts are fitted, by batch."""
        self.attended: list[torch.Tensor] = []
        self.rest: tuple[nn.Module, KnownAttention] | None = None

    def see_dense(self, stream: Sequence[torch.Tensor]) -> None:
        """Run the dense layer and keep what the pruned one is fitted to."""
        attention, mlp = getattr(*self.adapter.attention_owner(self.layer)), self.whole.get("mlp")
        adds = self.adapter.adds_outputs(self.calls.config)
        for state in self._brought(stream):
            with watched([attention, mlp and mlp.last, mlp and mlp.inputs[0][0]]) as seen:
                end = self.calls.run(self.layer, state, self.index).to(self.home)
            streams = outputs = None
            if adds:
                streams = {"attention": (state + seen[0].output).to(self.home), "mlp": end}
            else:
                mlp_output = None if seen[1].output is None else seen[1].output.to(self.home)
                outputs = {"attention": seen[0].output.to(self.home), "mlp": mlp_output}
            entering = None if seen[2].input is None else seen[2].input.to(self.home)
            self.targets.append(_Target(streams, outputs, entering, end))

    def _brought(self, stream: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """The batches of a stream on the device, one at a time."""
        for state in stream:
            check_cancelled(self.cancel)
            yield state.to(self.device)

    def fit_inputs(
        self,
        kind: Kind,
        keep: Sequence[int],
        dense_stream: Sequence[torch.Tensor],
        pruned_stream: Sequence[torch.Tensor],
    ) -> None:
        """Refit the linears that feed a module's units, so that they put out what they did in the dense network."""
        block, whole = self.narrow[kind], self.whole[kind]
        system = _System([linear for linear, _ in block.inputs], block.key, whole.inputs[0][0].in_features)
        weight = _kept_rows(whole, keep)
        for batch, state in enumerate(self._brought(pruned_stream)):
            if kind == "attention":
                entering = dense_stream[batch].to(self.device)
                seen = self.calls.inputs_of(whole.inputs[0][0], self.layer, entering, self.index)
            else:
                seen = self.targets[batch].entering.to(self.device)
            system.add(self._inputs_of(block.inputs[0][0], batch, state), seen)
        # N'ᵀ(N V_S) = (N'ᵀN) V_S: the outputs themselves are never formed.
        system.solve(self.damping, self.scarcity, self.ranks, through=weight)

    def fit_last(self, kind: Kind, stream: Sequence[torch.Tensor]) -> None:
        """Refit a module's last linear, so that the residual stream behind it is the dense one."""
        block = self.narrow[kind]
        system = _System([block.last], block.key, block.last.out_features)
        for batch, state in enumerate(self._brought(stream)):
            inputs = self._inputs_of(block.last, batch, state)
            self.reached[kind].append(inputs.to(self.home))
            met = state if kind == "attention" else state + self.attended[batch].to(self.device)
            wanted = self.targets[batch].of(kind, met)
            system.add(inputs, wanted if block.last.bias is None else wanted - block.last.bias)
        system.solve(self.damping, self.scarcity, self.ranks)

    def attend(self, stream: Sequence[torch.Tensor]) -> None:
        """Run the fitted attention of the pruned layer; from here on it is not run again."""
        attention = getattr(*self.adapter.attention_owner(self.narrow_layer))
        for batch, state in enumerate(self._brought(stream)):
            if self.reached["attention"]:
                # Nothing follows an attention's last linear (`Adapter.attention_owner`).
                output = self._finished("attention", batch, state)
            else:
                output = self.calls.output_of(attention, self.narrow_layer, state, self.index)
            self.attended.append(output.to(self.home))
        self.reached["attention"].clear()
        self.rest = behind_attention(self.adapter, self.narrow_layer)

    def leave(self, stream: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What leaves the fitted layer of the pruned model."""
        known = self.reached["mlp"] and self.adapter.adds_outputs(self.calls.config)
        left = []
        for batch, state in enumerate(self._brought(stream)):
            if known:
                end = state + self.attended[batch].to(self.device) + self._finished("mlp", batch, state)
            else:
                end = self.calls.run(self._layer(batch), state, self.index)
            left.append(end.to(self.home))
        return left

    def _finished(self, kind: Kind, batch: int, state: torch.Tensor) -> torch.Tensor:
        """What a fitted module puts out, in the shape of the residual stream."""
        return self.narrow[kind].last(self.reached[kind][batch].to(self.device)).reshape(state.shape)

    def _inputs_of(self, linear: nn.Linear, batch: int, state: torch.Tensor) -> torch.Tensor:
        return self.calls.inputs_of(linear, self._layer(batch), state, self.index)

    def _layer(self, batch: int) -> nn.Module:
        """The pruned layer, with the known attention of a batch where it is known."""
        if self.rest is None:
            return self.narrow_layer
        layer, known = self.rest
        known.output = self.attended[batch].to(self.device)
        return layer


def _kept_rows(block: Block, kept: Sequence[int]) -> torch.Tensor:
    """The rows of a module's input linears that belong to the kept units, one linear after the other, float64."""
    rows = [
        linear.weight[torch.cat([section.indices(kept) for section in sections]).to(linear.weight.device)]
        for linear, sections in block.inputs
    ]
    return to_float64(torch.cat(rows))


class _System:
    """The normal equations of linears that share their inputs, streamed."""

    def __init__(self, linears: list[nn.Linear], key: ModuleKey, targets: int) -> None:
        self.linears, self.key = linears, key
        channels, device = linears[0].in_features, linears[0].weight.device
        self.moments = GramAccumulator(channels, device)
        self.product = torch.zeros(channels, targets, dtype=torch.float64, device=device)

    def add(self, inputs: torch.Tensor, target: torch.Tensor) -> None:
        """`target` (..., targets) is what the linears should put out, without their biases, or what makes that."""
        product = inputs.float().T @ target.reshape(-1, target.shape[-1]).float()
        if not (self.moments.add(inputs) and bool(torch.isfinite(product).all())):
            raise NumericalError(
                f"Fitting {self.key}: activations are not finite; load the model in float32 or bfloat16."
            )
        self.product += product

    def solve(self, damping: float, scarcity: float, ranks: Ranks, *, through: torch.Tensor | None = None) -> None:
        """Give the linears their new weights.

        Args:
            ranks: the processes whose batches count.
            through: (out, targets), by which targets become what the linears should put out; None where they are.
        """
        moments = self.moments.finish(ranks)
        ranks.add(self.product)
        gram = moments.gram
        damping *= 1 + scarcity * self.linears[0].in_features / moments.tokens
        start = torch.cat([to_float64(linear.weight) for linear in self.linears]).T
        product = self.product if through is None else self.product @ through.T.to(self.product.device)
        gamma = damping * gram.diagonal().mean()
        try:
            factor, _ = damped_cholesky(gram, damping)
        except NumericalError as error:
            raise NumericalError(f"Fitting {self.key}: {error}") from error
        solved = torch.cholesky_solve(product + gamma * start, factor).T
        for linear, weight in zip(
            self.linears, solved.split([linear.out_features for linear in self.linears]), strict=True
        ):
            linear.weight.copy_(weight)
