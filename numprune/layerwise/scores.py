"""Scores of all modules, one decoder layer at a time."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from numprune.calibration.run import calibration_rows, collector
from numprune.calibration.statistics import GramAccumulator, ModuleStats
from numprune.errors import CancelEvent, InputError, Progress, check_cancelled
from numprune.layerwise.backward import information_by_layer
from numprune.layerwise.stage import Stage
from numprune.layerwise.state import State
from numprune.linalg import float64_device
from numprune.models.adapter import Block
from numprune.models.hooks import hooked
from numprune.models.model import Model
from numprune.models.placement import dtype_name, resolve_device, resolve_dtype
from numprune.models.replay import LayerCalls
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import CalibrationRecipe, check_ratio
from numprune.ranks import joined
from numprune.scoring.fisher import ROWS, prices
from numprune.scoring.registry import BLOCK_SCORERS, PRICED, check_scorer
from numprune.scoring.run import module_scores
from numprune.scoring.table import ModuleScores, ScoreTable

BY_LAYERS = (*PRICED, *BLOCK_SCORERS)
"""Scorers that need one layer at a time: prices take a pass backwards, the others look at one module alone."""
RATIO = 0.5
"""The sparsity that scores are computed for, as in `numprune.score`."""

Modules = dict[ModuleKey, ModuleScores]


def score_layerwise(
    model: Model,
    scorers: Sequence[str],
    calibration: CalibrationRecipe,
    folder: str | Path,
    *,
    ratio: float = RATIO,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> tuple[dict[str, ScoreTable], CalibrationRecipe, list[str]]:
    """`numprune.score` by several scorers without holding the model.

    Args:
        model: opened by `load(name, device="cpu", dtype="checkpoint")`; only read.
        scorers: names in `BY_LAYERS`.
        calibration: names the text.
        folder: what is finished lies in `folder`.partial, and is gone at the end; when the run is interrupted the
            same call goes on from there. The second moments of a layer stay until it is scored.
        ratio, device, dtype: as of `numprune.score` and `numprune.load`.

    Returns:
        The tables, the calibration they were made from, and notes.

    Raises:
        InputError: a scorer needs more than one layer at a time, or another run uses the folder.
        NumericalError: as `calibrate` and `score`.
        NumpruneError: the disk refuses; what is finished stays.
        Cancelled: `cancel` was set; what is finished stays.
    """
    check_ratio(ratio)
    for name in scorers:
        check_scorer(name)
        if name not in BY_LAYERS:
            raise InputError(
                f"Scorer {name} needs the whole model in memory; give one of {', '.join(BY_LAYERS)}, or more --memory."
            )
    target = resolve_device(device)
    stage = Stage(model, target, resolve_dtype(dtype, model.config, target))
    settings = {"fingerprint": model.fingerprint(), "calibration": vars(calibration), "scorers": list(scorers)}
    settings |= {"ratio": ratio, "device": str(target), "dtype": dtype_name(stage.dtype)}
    notes = list(model.notes)
    with State.begin(folder, settings) as state:
        found = scores_by_layer(
            stage, calibration, scorers, state, notes, ratio=ratio, keep=False, progress=progress, cancel=cancel
        )
        state.remove()
    return *found, notes


@torch.no_grad()
def scores_by_layer(
    stage: Stage,
    source: CalibrationRecipe,
    scorers: Sequence[str],
    state: State,
    notes: list[str],
    *,
    ratio: float = RATIO,
    keep: bool = True,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> tuple[dict[str, ScoreTable], CalibrationRecipe]:
    """The scores of all layers by every scorer, and the calibration they were made from.

    Args:
        keep: whether the moments of a layer stay when it is scored.
    """
    rows = state.rows(lambda told: calibration_rows(stage.model, source.data, source, told, cancel=cancel), notes)
    alone = [name for name in scorers if name not in PRICED]
    back = len(alone) < len(scorers)
    found: dict[str, Modules] = {name: {} for name in scorers}
    batches = stage.batches(rows)
    calls, own = stage.calls([rows[each] for each in batches]), torch.cat(batches)
    leading = own[own < ROWS]
    for index in range(stage.layers):
        check_cancelled(cancel)
        if back and not state.has_boundary(index):
            state.keep_boundary(index, _leading(calls.states, len(leading)))
        finished = all(state.has_scores(index, name) for name in scorers)
        collect = not (state.has_moments(index) or (finished and not keep))
        moments = _run(stage, calls, index, collect=collect)
        if collect:
            state.keep_moments(index, moments)
        del moments
        # Modules and what looks into them hold each other, so a layer goes only when the collector finds it.
        gc.collect()
        for name in alone:
            found[name] |= _scores_of(stage, name, ratio, state, index, cancel)
        if not (keep or back):
            state.drop_moments(index)
        if progress is not None:
            doing = "calibrating and scoring layer by layer" if alone else "calibrating layer by layer"
            progress(index + 1, stage.layers, doing)
    if back:
        if not state.has_boundary(stage.layers):
            state.keep_boundary(stage.layers, _leading(calls.states, len(leading)))
        del calls
        found["fisher"] = _prices(stage, state, rows[:ROWS].long(), leading, source.seed, keep, progress, cancel)
    used = replace(source, samples=len(rows), sequence_length=rows.shape[1])
    model = stage.model
    tables = {
        name: ScoreTable(modules, name, ratio, model.name, model.fingerprint(), model.parameters, model.beside)
        for name, modules in found.items()
    }
    return tables, used


def _leading(states: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """So many sequences, those that the Fisher information is taken from, (sequences, tokens, hidden)."""
    batches = -(-count // len(states[0]))
    return torch.cat(list(states[:batches]))[:count]


def _run(stage: Stage, calls: LayerCalls, index: int, *, collect: bool) -> dict[ModuleKey, ModuleStats]:
    """Bring the stream behind a layer; returns the moments of what reaches its modules' last linears, if wanted."""
    layer = stage.layer(index)
    blocks = stage.adapter.layer_blocks(layer, index, calls.config) if collect else []
    accumulators = {block.key: GramAccumulator(block.last.in_features, stage.device) for block in blocks}
    collectors = {block.last: collector(block.key, accumulators[block.key]) for block in blocks}
    with hooked(before=collectors):
        for batch, state in enumerate(calls.states):
            calls.states[batch] = calls.run(layer, state.to(stage.device), index).cpu()
    return {key: accumulator.finish(joined()) for key, accumulator in accumulators.items()}


def _scores_of(
    stage: Stage, scorer: str, ratio: float, state: State, index: int, cancel: CancelEvent | None
) -> Modules:
    """The scores of one layer by a scorer that looks at one module alone."""
    known = state.scores(index, scorer)
    if known is None:
        found, ranks = {}, joined()
        blocks = {block.key: block for block in stage.filed_blocks(index)}
        for key in ranks.share_modules({key: block.solving for key, block in blocks.items()}):
            # Weights and moments from the files, so that the layer and its matrices take no memory meanwhile.
            weight, stats = _filed(stage, state, blocks[key])
            channels = BLOCK_SCORERS[scorer](blocks[key], weight, stats, ratio=ratio, progress=None, cancel=cancel)
            found[key] = module_scores(blocks[key], channels, scorer)
        known = ranks.exchange(found)
        state.keep_scores(index, scorer, known)
    return known


def _prices(
    stage: Stage,
    state: State,
    rows: torch.Tensor,
    own: torch.Tensor,
    seed: int,
    keep: bool,
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> Modules:
    """The prices of all units by the loss of the model."""
    found = {index: state.scores(index, "fisher") for index in range(stage.layers)}
    waiting: dict[int, dict[ModuleKey, torch.Tensor]] = {}
    if None in found.values():
        for index, information in information_by_layer(stage, state, rows, own, seed, cancel=cancel):
            done = []
            if found[index] is None:
                waiting[index] = information
            else:
                done.append(index)
            # As many layers as there are processes, so that each has an MLP to price.
            if waiting and (len(waiting) == joined().count or index == 0):
                found |= _priced(stage, state, waiting, cancel)
                done += waiting
                waiting.clear()
            for priced in done if not keep else ():
                state.drop_moments(priced)
            if progress is not None:
                progress(stage.layers - index, stage.layers, "pricing layer by layer, from the last")
    return {key: scores for index in found for key, scores in found[index].items()}


def _priced(
    stage: Stage, state: State, layers: dict[int, dict[ModuleKey, torch.Tensor]], cancel: CancelEvent | None
) -> dict[int, Modules]:
    """The prices of some layers' units from the information at their modules' outputs."""
    ranks, own = joined(), {}
    blocks = {block.key: block for index in layers for block in stage.filed_blocks(index)}
    for key in ranks.share_modules({key: block.solving for key, block in blocks.items()}):
        check_cancelled(cancel)
        weight, stats = _filed(stage, state, blocks[key])
        channels = prices(blocks[key], weight.double(), stats, layers[key.layer].pop(key), cancel=cancel)
        own[key] = module_scores(blocks[key], channels, "fisher")
    everywhere = ranks.exchange(own)
    found = {}
    for index in layers:
        found[index] = {key: everywhere[key] for key in blocks if key.layer == index}
        state.keep_scores(index, "fisher", found[index])
    return found


def _filed(stage: Stage, state: State, block: Block) -> tuple[torch.Tensor, ModuleStats]:
    """The weight of a module's last linear as it lies in the files, and its moments."""
    weight = block.last.weight.detach().to(float64_device(stage.device), stage.dtype)
    return weight, state.moments(block.key).to(weight.device)
