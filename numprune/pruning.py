"""From a plan to a smaller model."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import pandas as pd
import torch

from numprune.allocation import PruningPlan
from numprune.calibration.statistics import CalibrationStats
from numprune.compensation import compensate, lost_mean, relative_error
from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.files import to_json
from numprune.healing import heal
from numprune.models.adapter import ModuleKey
from numprune.models.model import Model, slice_module
from numprune.recipe import COMPENSATIONS, SEQUENTIAL
from numprune.residual import fit_to_residual


@dataclass(frozen=True)
class ModuleReport:
    """What pruning did to one module.

    `error_before` and `error_after` are ||X W - X_S W'|| / ||X W|| of the module's output on the calibration
    data and the dense model's activations, with the kept weights as they were and as they are now. Compensations
    "residual" and "network" and healing fit to something else, on purpose, and may raise this error.
    """

    layer: int
    module: str
    units: int
    kept: int
    error_before: float
    error_after: float
    seconds: float


@dataclass(frozen=True)
class PruningReport:
    """Sizes, errors and times of one pruning."""

    modules: list[ModuleReport]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    ratio_asked: float
    ratio_reached: float
    compensation: str
    damping: float
    device: str
    dtype: str
    seconds: float
    notes: list[str] = field(default_factory=list)

    def to_pandas(self) -> pd.DataFrame:
        """One row per module."""
        columns = [column.name for column in fields(ModuleReport)]
        return pd.DataFrame([asdict(module) for module in self.modules], columns=columns)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> PruningReport:
        """The report that `to_dict` was called on."""
        return cls(**{**given, "modules": [ModuleReport(**module) for module in given["modules"]]})

    def to_json(self) -> str:
        return to_json(self.to_dict())


def prune(
    model: Model,
    plan: PruningPlan,
    stats: CalibrationStats,
    *,
    compensation: str = "paper",
    damping: float = 0.01,
    healing: int = 0,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Model:
    """A copy of `model` whose projections are physically narrower; `model` itself is not touched.

    Args:
        plan: from `allocate`, for this model.
        stats: from `calibrate`, for this model; used for compensation and for the errors in the report.
        compensation: "paper" refits the kept columns of o_proj and down_proj (theorem 3); "residual" refits them
            one module after the other against the dense residual stream, "network" the linears that feed the units
            and the gains of the last norm too (`numprune.residual`); "bias" leaves them and adds the mean output of
            what was removed as a bias (FLAP), also where the architecture has none; "none" leaves them. Biases are
            counted in the report, not in the plan.
        damping: of the compensation, see `numprune.compensation.compensate`.
        healing: steps of training after it, see `numprune.healing.heal`; 0 trains nothing.

    Returns:
        A model on the same device in the same dtype, with `.recipe` and `.report`.

    Raises:
        InputError: plan or statistics are another model's, or an option is not known.
        NumericalError: a compensation cannot be solved; the module is named.
        Cancelled: `cancel` was set.
    """
    began = time.monotonic()
    if compensation not in COMPENSATIONS:
        raise InputError(f"compensation '{compensation}' is not known; use {', '.join(COMPENSATIONS)}.")
    if plan.recipe.method != "units":
        raise InputError(f"The plan is for method {plan.recipe.method}; call prune_as_planned, which carries it out.")
    fingerprint = model.fingerprint()
    for what, owner in (("plan", plan.fingerprint), ("statistics", stats.fingerprint)):
        if owner != fingerprint:
            raise InputError(f"The {what} belong to another model than {model.name}; make them for this one.")

    weights, seconds, notes = {}, {}, [*stats.notes, *plan.notes]
    if compensation == "paper":
        weights, seconds = _compensated(model, plan, stats, damping, progress, cancel)
    biases = _biases(model, plan, stats) if compensation == "bias" else {}
    module = slice_module(model.module, model.adapter, plan.keep, weights, biases)
    if compensation in SEQUENTIAL:
        if stats.rows is None:
            raise InputError("These statistics hold no token ids to fit to the dense network on; calibrate again.")
        fit = fit_to_residual(
            model.module,
            module,
            model.adapter,
            stats.rows,
            keep=plan.keep if compensation == "network" else None,
            damping=damping,
            progress=progress,
            cancel=cancel,
        )
        seconds = fit.seconds
        notes += fit.notes
    check_cancelled(cancel)
    pruned = model.around(module)
    pruned.recipe = plan.recipe.replace(
        model=model.name,
        fingerprint=fingerprint,
        swaps=plan.recipe.swaps if plan.refined else 0,
        compensation=compensation,
        damping=damping,
        healing=healing,
    )
    if healing:
        if stats.rows is None:
            raise InputError("These statistics hold no token ids to heal on; calibrate again.")
        notes.append(str(heal(model, pruned, stats.rows, steps=healing, progress=progress, cancel=cancel)))
    pruned.report = PruningReport(
        modules=_reports(model, pruned, plan, stats, seconds),
        parameters_before=model.parameters,
        parameters_after=pruned.parameters,
        bytes_before=model.bytes,
        bytes_after=pruned.bytes,
        ratio_asked=plan.ratio_asked,
        ratio_reached=plan.ratio_reached,
        compensation=compensation,
        damping=damping,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        seconds=time.monotonic() - began,
        notes=notes,
    )
    return pruned


def prune_as_planned(
    model: Model,
    plan: PruningPlan,
    stats: CalibrationStats,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Model:
    """Carry the recipe out that the plan was made from: its method, swaps, compensation, damping and healing."""
    # Both modules import this one.
    from numprune.refinement import refine
    from numprune.slicing import slice_by_recipe

    if plan.recipe.method == "slicegpt":
        return slice_by_recipe(model, stats, plan.recipe, progress=progress, cancel=cancel)
    plan = refine(model, plan, stats, progress=progress, cancel=cancel)
    return prune(
        model,
        plan,
        stats,
        compensation=plan.recipe.compensation,
        damping=plan.recipe.damping,
        healing=plan.recipe.healing,
        progress=progress,
        cancel=cancel,
    )


def _compensated(
    model: Model,
    plan: PruningPlan,
    stats: CalibrationStats,
    damping: float,
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> tuple[dict[ModuleKey, torch.Tensor], dict[ModuleKey, float]]:
    """The compensated weight of every module that keeps some of its units, and how long each took."""
    weights, seconds = {}, {}
    blocks = model.blocks
    for done, block in enumerate(blocks, 1):
        check_cancelled(cancel)
        started = time.monotonic()
        kept = plan.keep[block.key]
        if 0 < len(kept) < block.units:
            dense = block.last.weight.detach()
            try:
                updated = compensate(dense, stats.modules[block.key].gram, block.channels(kept), damping=damping)
            except NumericalError as error:
                raise NumericalError(f"Compensating {block.key}: {error}") from error
            weights[block.key] = updated.to(dense.device, dense.dtype)
        seconds[block.key] = time.monotonic() - started
        if progress is not None:
            progress(done, len(blocks), f"pruning {block.key}")
    return weights, seconds


def _biases(model: Model, plan: PruningPlan, stats: CalibrationStats) -> dict[ModuleKey, torch.Tensor]:
    """The bias of every module that loses units."""
    biases = {}
    for block in model.blocks:
        kept = plan.keep[block.key]
        if len(kept) < block.units:
            dense = block.last.weight.detach()
            bias = lost_mean(dense, stats.modules[block.key].mean, block.channels(kept))
            if block.last.bias is not None:
                bias += block.last.bias.detach().to(bias.device)
            biases[block.key] = bias.to(dense.device, dense.dtype)
    return biases


def _reports(
    dense: Model, pruned: Model, plan: PruningPlan, stats: CalibrationStats, seconds: dict[ModuleKey, float]
) -> list[ModuleReport]:
    narrow = {block.key: block for block in pruned.blocks}
    reports = []
    for block in dense.blocks:
        kept = plan.keep[block.key]
        before = after = 0.0
        if len(kept) < block.units:
            weight, gram, channels = block.last.weight.detach(), stats.modules[block.key].gram, block.channels(kept)
            sliced = weight[:, channels.to(weight.device)]
            before = after = relative_error(weight, gram, channels, sliced)
            if block.key in seconds and block.key in narrow:
                after = relative_error(weight, gram, channels, narrow[block.key].last.weight.detach())
        reports.append(
            ModuleReport(
                layer=block.key.layer,
                module=block.key.kind,
                units=block.units,
                kept=len(kept),
                error_before=before,
                error_after=after,
                seconds=seconds.get(block.key, 0.0),
            )
        )
    return reports
