"""Prune from folder to folder, one decoder layer at a time.

Passes over the layers, in the order of the network. The first holds the residual stream of the calibration text at
one layer boundary, runs one layer on it, writes the second moments of its modules' inputs beside the output and scores
its units; prices by the loss of the model take a pass back from the last layer instead. Allocation then sees the scores
of all layers. The last pass reads a layer and its moments, compensates, and writes the narrower layer. What a pass has
finished stays beside the output until the end, so that a run that was stopped, or killed, goes on from there with the
same bits.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from numprune.allocation.threshold import allocate
from numprune.calibration.run import calibration_rows, collector
from numprune.calibration.statistics import GramAccumulator, ModuleStats
from numprune.errors import CancelEvent, InputError, Progress, check_cancelled
from numprune.layerwise.backward import information_by_layer
from numprune.layerwise.refit import write_fitted
from numprune.layerwise.stage import Stage
from numprune.layerwise.state import State
from numprune.linalg import float64_device
from numprune.models.adapter import Block
from numprune.models.hooks import hooked
from numprune.models.model import Model, slice_layer
from numprune.models.placement import dtype_name, resolve_device, resolve_dtype
from numprune.models.replay import LayerCalls
from numprune.plan.keys import ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import SEQUENTIAL, CalibrationRecipe, Recipe
from numprune.plan.report import ModuleReport, PruningReport
from numprune.pruning import compensated, mean_bias, module_report
from numprune.scoring.fisher import ROWS, prices
from numprune.scoring.registry import BLOCK_SCORERS, PRICED, check_scorer
from numprune.scoring.run import module_scores
from numprune.scoring.table import ModuleScores, ScoreTable

RATIO = 0.5
"""The sparsity that scores are computed for, as in `numprune.score`."""


def prune_layerwise(
    model: Model,
    recipe: Recipe,
    out: str | Path,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    why: str = "",
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> PruningReport:
    """Carry a recipe out without holding the model: the folder `out` is what `prune` and `Model.save` would write.

    Kept between layers are the residual stream of the calibration text, on the CPU (up to six times while modules are
    fitted one after the other), and the scores. In the folder `out`.partial lie the second moments of all modules, 8
    bytes for every pair of a module's channels, and for prices by the loss the stream of 32 sequences at every layer
    boundary, until the run has ended; when it is interrupted the folder stays, and the same call goes on from the last
    finished layer.

    Args:
        model: opened by `load(name, device="cpu", dtype="checkpoint")`; only read.
        recipe: names the calibration text, and a scorer that needs one layer at a time.
        device, dtype: what a layer is computed on and in, as of `load`.
        why: a sentence for the report.

    Raises:
        InputError: the recipe asks for more than one layer at a time can tell; `out` is something else, or another run
            writes it, or an interrupted one with other settings.
        NumericalError: as `calibrate`, `score` and `prune`.
        NumpruneError: the disk refuses; what is finished stays.
        Cancelled: `cancel` was set; what is finished stays.
    """
    began = time.monotonic()
    check_layerwise(recipe)
    target = resolve_device(device)
    stage = Stage(model, target, resolve_dtype(dtype, model.config, target))
    recipe = model.adopt(recipe)
    done = recipe.replace(model=model.name, fingerprint=recipe.fingerprint)
    settings = {"recipe": done.to_dict(), "device": str(target), "dtype": dtype_name(stage.dtype)}
    with State.begin(out, settings) as state:
        notes = [*model.notes, why] if why else list(model.notes)
        table, used = _score(stage, done, state, notes, progress, cancel)
        done = done.replace(calibration=used)
        plan = allocate(table, done)
        fitted = []
        if recipe.compensation in SEQUENTIAL:
            reports, fitted = write_fitted(stage, plan, state, state.drawn_rows(), progress, cancel)
        else:
            reports = _write(stage, plan, state, progress, cancel)
        report = _report(stage, plan, reports, state.parameters(model), [*notes, *plan.notes, *fitted], began)
        state.finish(model, plan, done, report)
    return report


def check_layerwise(recipe: Recipe) -> None:
    """Raise InputError for a recipe that needs more of the model than a layer at a time."""
    check_scorer(recipe.scorer)
    refused = None
    if recipe.removal != "units":
        refused = f"method {recipe.removal}"
    elif recipe.scorer not in (*BLOCK_SCORERS, *PRICED):
        refused = f"scorer {recipe.scorer}"
    elif recipe.swaps or recipe.healing:
        refused = "swaps" if recipe.swaps else "healing"
    if refused is not None:
        raise InputError(
            f"{refused[0].upper()}{refused[1:]} needs the whole model in memory; give --preset balanced or paper, a"
            f" scorer among {', '.join((*PRICED, *BLOCK_SCORERS))} without swaps and healing, or more --memory."
        )
    if recipe.calibration.data is None:
        raise InputError("The recipe was calibrated on text it does not name; give a file or a dataset.")


@torch.no_grad()
def _score(
    stage: Stage,
    recipe: Recipe,
    state: State,
    notes: list[str],
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> tuple[ScoreTable, CalibrationRecipe]:
    """The scores of all layers, and the calibration they were made from."""
    source = recipe.calibration
    rows = state.rows(lambda told: calibration_rows(stage.model, source.data, source, told, cancel=cancel), notes)
    back = recipe.scorer in PRICED
    modules: dict[ModuleKey, ModuleScores] = {}
    calls = stage.calls(rows)
    for index in range(stage.layers):
        check_cancelled(cancel)
        if back and not state.has_boundary(index):
            state.keep_boundary(index, _leading(calls.states))
        kept = state.has_moments(index)
        moments = _run(stage, calls, index, collect=not kept)
        if not kept:
            state.keep_moments(index, moments)
        del moments
        # Modules and what looks into them hold each other, so a layer goes only when the collector finds it.
        gc.collect()
        if not back:
            modules |= _scores_of(stage, recipe.scorer, state, index, cancel)
        if progress is not None:
            doing = "calibrating layer by layer" if back else "calibrating and scoring layer by layer"
            progress(index + 1, stage.layers, doing)
    if back:
        if not state.has_boundary(stage.layers):
            state.keep_boundary(stage.layers, _leading(calls.states))
        del calls
        modules = _prices(stage, state, rows[:ROWS].long(), source.seed, progress, cancel)
    used = replace(source, samples=len(rows), sequence_length=rows.shape[1])
    table = ScoreTable(modules, recipe.scorer, RATIO, stage.model.name, recipe.fingerprint, stage.model.parameters)
    return table, used


def _leading(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sequences that the Fisher information is taken from, (sequences, tokens, hidden)."""
    batches = -(-ROWS // len(states[0]))
    return torch.cat(list(states[:batches]))[:ROWS]


def _scores_of(
    stage: Stage, scorer: str, state: State, index: int, cancel: CancelEvent | None
) -> dict[ModuleKey, ModuleScores]:
    """The scores of one layer by a scorer that looks at one module alone."""
    known = state.scores(index)
    if known is None:
        known = {}
        # Weights and moments from the files, so that the layer and its matrices take no memory meanwhile.
        for block, weight, stats in _filed(stage, state, index):
            channels = BLOCK_SCORERS[scorer](block, weight, stats, ratio=RATIO, progress=None, cancel=cancel)
            known[block.key] = module_scores(block, channels, scorer)
        state.keep_scores(index, known)
    return known


def _prices(
    stage: Stage, state: State, rows: torch.Tensor, seed: int, progress: Progress | None, cancel: CancelEvent | None
) -> dict[ModuleKey, ModuleScores]:
    """The prices of all units by the loss of the model."""
    found = {index: state.scores(index) for index in range(stage.layers)}
    if None in found.values():
        for index, information in information_by_layer(stage, state, rows, seed, cancel=cancel):
            check_cancelled(cancel)
            if found[index] is None:
                known = {}
                for block, weight, stats in _filed(stage, state, index):
                    channels = prices(block, weight.double(), stats, information.pop(block.key), cancel=cancel)
                    known[block.key] = module_scores(block, channels, "fisher")
                state.keep_scores(index, known)
                found[index] = known
            if progress is not None:
                progress(stage.layers - index, stage.layers, "pricing layer by layer, from the last")
    return {key: scores for index in found for key, scores in found[index].items()}


def _filed(stage: Stage, state: State, index: int) -> Iterator[tuple[Block, torch.Tensor, ModuleStats]]:
    """The modules of a layer as they lie in the files, with the weight of their last linear and their moments."""
    for block in stage.filed_blocks(index):
        weight = block.last.weight.detach().to(float64_device(stage.device), stage.dtype)
        yield block, weight, state.moments(block.key).to(weight.device)


def _run(stage: Stage, calls: LayerCalls, index: int, *, collect: bool) -> dict[ModuleKey, ModuleStats]:
    """Bring the stream behind a layer; returns the moments of what reaches its modules' last linears, if wanted."""
    layer = stage.layer(index)
    blocks = stage.adapter.layer_blocks(layer, index, calls.config) if collect else []
    accumulators = {block.key: GramAccumulator(block.last.in_features, stage.device) for block in blocks}
    collectors = {block.last: collector(block.key, accumulators[block.key]) for block in blocks}
    with hooked(before=collectors):
        for batch, state in enumerate(calls.states):
            calls.states[batch] = calls.run(layer, state.to(stage.device), index).cpu()
    return {key: accumulator.finish() for key, accumulator in accumulators.items()}


@torch.no_grad()
def _write(
    stage: Stage, plan: PruningPlan, state: State, progress: Progress | None, cancel: CancelEvent | None
) -> list[ModuleReport]:
    """Write every layer as the plan leaves it, and all that is no layer."""
    recipe, config, reports = plan.recipe, stage.model.config, []
    written = stage.model.written_dtype
    for index in range(stage.layers):
        check_cancelled(cancel)
        known = state.reports(index, stage.layers)
        if known is None:
            layer = stage.layer(index)
            weights, biases, known = {}, {}, []
            for block in stage.adapter.layer_blocks(layer, index, config):
                started, kept = time.monotonic(), plan.keep[block.key]
                stats = state.moments(block.key)
                if recipe.compensation == "paper" and 0 < len(kept) < block.units:
                    weights[block.key] = compensated(block, stats, kept, recipe.damping)
                elif recipe.compensation == "bias" and len(kept) < block.units:
                    biases[block.key] = mean_bias(block, stats, kept)
                took = time.monotonic() - started
                known.append(module_report(block, stats, kept, weights.get(block.key), took))
            keep = {key: units for key, units in plan.keep.items() if key.layer == index}
            narrow = slice_layer(layer, stage.adapter, index, config, keep, weights, biases)
            state.write_layer(stage, index, narrow.state_dict(), written, known)
        reports += known
        if progress is not None:
            progress(index + 1, stage.layers, "writing the narrower layers")
    state.write_rest(stage, written, {})
    return reports


def _report(
    stage: Stage, plan: PruningPlan, modules: list[ModuleReport], parameters: int, notes: list[str], began: float
) -> PruningReport:
    model, itemsize = stage.model, stage.model.written_dtype.itemsize
    return PruningReport(
        modules=modules,
        parameters_before=plan.parameters_before,
        parameters_after=parameters,
        bytes_before=model.parameters * itemsize,
        bytes_after=parameters * itemsize,
        ratio_asked=plan.ratio_asked,
        ratio_reached=plan.ratio_reached,
        compensation=plan.recipe.compensation,
        damping=plan.recipe.damping,
        device=str(stage.device),
        dtype=dtype_name(model.written_dtype),
        seconds=time.monotonic() - began,
        notes=notes,
    )
