"""One public verb: a plan becomes a smaller model, by the recipe it was made from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from numprune.allocation.swaps import swap_units
from numprune.calibration.statistics import CalibrationStats, ModuleStats
from numprune.errors import CancelEvent, NumericalError, Progress, check_cancelled
from numprune.fitting.compensation import compensate, lost_mean, relative_errors
from numprune.fitting.healing import heal, rows_for
from numprune.fitting.sequential import fit_to_dense
from numprune.models.adapter import Block
from numprune.models.depth import left_layers, own_keys
from numprune.models.model import Model, slice_module
from numprune.models.placement import dtype_name
from numprune.plan.keys import ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import SEQUENTIAL
from numprune.plan.report import ModuleReport, PruningReport
from numprune.ranks import joined
from numprune.slicing.principal import slice_by_recipe


def prune(
    model: Model,
    plan: PruningPlan,
    stats: CalibrationStats,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Model:
    """A copy of `model` whose projections are physically narrower; `model` itself is not touched.

    Everything is done as the plan's recipe says. Its compensation "paper" refits the kept columns of o_proj and
    down_proj (theorem 3); "residual" refits them one module after the other against the dense residual stream,
    "network" the linears that feed the units and the gains of the last norm too (`numprune.fitting.sequential`);
    "bias" leaves them and adds the mean output of what was removed as a bias (FLAP), also where the architecture has
    none; "none" leaves them. Before it come the recipe's swaps (`numprune.allocation.swaps`), after it its healing
    (`numprune.fitting.healing`). With removal "slicegpt" the residual stream is narrowed instead (`numprune.slicegpt`).

    The recipe of the result says what was done: it names this model and the calibration of `stats`, so that it gives
    the same weights again. Biases are counted in the report, not in the plan.

    Args:
        plan: from `allocate`, for this model.
        stats: from `calibrate`, for this model; used for the fits and for the errors in the report.

    Returns:
        A model on the same device in the same dtype, with `.recipe` and `.report`.

    Raises:
        InputError: plan or statistics are another model's, or the statistics hold no token ids that the recipe needs.
        NumericalError: a compensation cannot be solved, or left a weight that is not finite; the module or the tensor
            is named.
        Cancelled: `cancel` was set.
    """
    began = time.monotonic()
    recipe = plan.recipe
    fingerprint = model.check_own(plan=plan.fingerprint, statistics=stats.fingerprint)
    done = recipe.replace(model=model.name, fingerprint=fingerprint, calibration=stats.source)
    if recipe.removal == "slicegpt":
        return slice_by_recipe(model, stats, done, progress=progress, cancel=cancel)
    plan = swap_units(model, plan, stats, progress=progress, cancel=cancel)
    fit = _fitted(model, plan, stats, progress, cancel)
    check_cancelled(cancel)
    pruned = model.around(fit.module)
    pruned.recipe = done
    if plan.gone:
        pruned.origins = tuple(left_layers(model.layers, plan.gone))
    notes = [*stats.notes, *plan.notes, *fit.notes]
    if recipe.healing:
        rows = rows_for(model, stats, recipe.healing, progress=progress, cancel=cancel)
        notes.append(str(heal(model, pruned, rows, steps=recipe.healing, progress=progress, cancel=cancel)))
    pruned.check_finite("raise the damping, or calibrate on more text")
    pruned.report = PruningReport(
        modules=_reports(model, pruned, plan, stats, fit.seconds),
        parameters_before=model.parameters,
        parameters_after=pruned.parameters,
        bytes_before=model.stored_bytes,
        bytes_after=pruned.stored_bytes,
        ratio_asked=plan.ratio_asked,
        ratio_reached=plan.ratio_reached,
        compensation=recipe.compensation,
        damping=recipe.damping,
        device=str(model.device),
        dtype=dtype_name(model.written_dtype),
        seconds=time.monotonic() - began,
        notes=notes,
    )
    return pruned


@dataclass(frozen=True)
class _Fitted:
    """The narrower module, what each fitted module took, and sentences for the report."""

    module: torch.nn.Module
    seconds: dict[ModuleKey, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _fitted(
    model: Model, plan: PruningPlan, stats: CalibrationStats, progress: Progress | None, cancel: CancelEvent | None
) -> _Fitted:
    """What the plan leaves of the model, with the recipe's compensation."""
    recipe = plan.recipe
    if recipe.compensation == "paper":
        weights, seconds = _compensated(model, plan, stats, progress, cancel)
        return _Fitted(slice_module(model.module, model.adapter, plan.keep, weights, gone=plan.gone), seconds)
    if recipe.compensation == "bias":
        return _Fitted(slice_module(model.module, model.adapter, plan.keep, {}, _biases(model, plan, stats)))
    if recipe.compensation not in SEQUENTIAL:
        return _Fitted(slice_module(model.module, model.adapter, plan.keep, gone=plan.gone))
    rows = stats.token_rows("fit to the dense network on")
    module = slice_module(model.module, model.adapter, plan.keep, gone=plan.gone)
    fit = fit_to_dense(
        model.module,
        module,
        model.adapter,
        rows,
        keep=plan.keep if recipe.compensation == "network" else None,
        gone=plan.gone,
        damping=recipe.damping,
        scarcity=recipe.scarcity,
        progress=progress,
        cancel=cancel,
    )
    return _Fitted(module, fit.seconds, fit.notes)


def _compensated(
    model: Model, plan: PruningPlan, stats: CalibrationStats, progress: Progress | None, cancel: CancelEvent | None
) -> tuple[dict[ModuleKey, torch.Tensor], dict[ModuleKey, float]]:
    """The compensated weight of every module that keeps some of its units, and how long each took."""
    weights, seconds, ranks = {}, {}, joined()
    blocks = {block.key: block for block in model.blocks}
    own = ranks.share_modules({key: block.solving for key, block in blocks.items()})
    for done, block in enumerate(map(blocks.__getitem__, own), 1):
        check_cancelled(cancel)
        started = time.monotonic()
        kept = plan.keep[block.key]
        if 0 < len(kept) < block.units:
            weights[block.key] = compensated(block, stats.modules[block.key], kept, plan.recipe.damping)
        seconds[block.key] = time.monotonic() - started
        if progress is not None:
            progress(done, len(own), f"pruning {block.key}")
    everywhere = {key: weight.to(model.device) for key, weight in ranks.exchange(weights).items()}
    return everywhere, ranks.exchange(seconds)


def compensated(block: Block, stats: ModuleStats, kept: Sequence[int], damping: float) -> torch.Tensor:
    """The weight of a module's last linear by theorem 3, (out, kept channels), where and as the dense one lies."""
    dense = block.last.weight.detach()
    try:
        updated = compensate(dense, stats.gram, block.channels(kept), damping=damping)
    except NumericalError as error:
        raise NumericalError(f"Compensating {block.key}: {error}") from error
    return updated.to(dense.device, dense.dtype)


def mean_bias(block: Block, stats: ModuleStats, kept: Sequence[int]) -> torch.Tensor:
    """The bias of a module's last linear that makes up for the mean of what was removed, FLAP's, (out,)."""
    dense = block.last.weight.detach()
    bias = lost_mean(dense, stats.mean, block.channels(kept))
    if block.last.bias is not None:
        bias += block.last.bias.detach().to(bias.device)
    return bias.to(dense.device, dense.dtype)


def _biases(model: Model, plan: PruningPlan, stats: CalibrationStats) -> dict[ModuleKey, torch.Tensor]:
    """The bias of every module that loses units."""
    biases = {}
    for block in model.blocks:
        kept = plan.keep[block.key]
        if len(kept) < block.units:
            biases[block.key] = mean_bias(block, stats.modules[block.key], kept)
    return biases


def _reports(
    dense: Model, pruned: Model, plan: PruningPlan, stats: CalibrationStats, seconds: dict[ModuleKey, float]
) -> list[ModuleReport]:
    own = own_keys(dense.layers, plan.gone)
    narrow = {own[block.key]: block for block in pruned.blocks}
    reports = []
    for block in dense.blocks:
        fitted = narrow[block.key].last.weight.detach() if block.key in seconds and block.key in narrow else None
        took = seconds.get(block.key, 0.0)
        reports.append(module_report(block, stats.modules[block.key], plan.keep[block.key], fitted, took))
    return reports


def module_report(
    block: Block, stats: ModuleStats, kept: Sequence[int], fitted: torch.Tensor | None, seconds: float
) -> ModuleReport:
    """What pruning did to one module of the dense model; `fitted` is its new weight, None where it was left alone."""
    before = after = 0.0
    if len(kept) < block.units:
        weight, channels = block.last.weight.detach(), block.channels(kept)
        weights = [weight[:, channels.to(weight.device)], *([] if fitted is None else [fitted])]
        errors = relative_errors(weight, stats.gram, channels, weights)
        before, after = errors[0], errors[-1]
    return ModuleReport(
        layer=block.key.layer,
        module=block.key.kind,
        units=block.units,
        kept=len(kept),
        error_before=before,
        error_after=after,
        seconds=seconds,
    )
