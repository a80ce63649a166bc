"""Prune from folder to folder, one decoder layer at a time.

Passes over the layers, in the order of the network. The first holds the residual stream of the calibration text at
one layer boundary, runs one layer on it, writes the second moments of its modules' inputs beside the output and scores
its units; prices by the loss of the model take a pass back from the last layer instead. Allocation then sees the scores
of all layers. The last pass reads a layer and its moments, compensates, and writes the narrower layer. What a pass has
finished stays beside the output until the end, so that a run that was stopped, or killed, goes on from there with the
same bits.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from numprune.allocation.threshold import allocate
from numprune.errors import CancelEvent, InputError, Progress, check_cancelled
from numprune.layerwise.refit import write_fitted
from numprune.layerwise.scores import BY_LAYERS, scores_by_layer
from numprune.layerwise.stage import Stage
from numprune.layerwise.state import State
from numprune.models.depth import left_layers
from numprune.models.model import Model, slice_layer
from numprune.models.placement import dtype_name, resolve_device, resolve_dtype
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import SEQUENTIAL, Recipe
from numprune.plan.report import ModuleReport, PruningReport
from numprune.pruning import compensated, mean_bias, module_report
from numprune.ranks import joined
from numprune.scoring.registry import check_scorer


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
        tables, used = scores_by_layer(
            stage, done.calibration, [done.scorer], state, notes, progress=progress, cancel=cancel
        )
        done = done.replace(calibration=used)
        plan = allocate(tables[done.scorer], done)
        fitted = []
        if recipe.compensation in SEQUENTIAL:
            reports, fitted = write_fitted(stage, plan, state, state.drawn_rows(), progress, cancel)
        else:
            reports = _write(stage, plan, state, progress, cancel)
        layers = model.layers - len(plan.gone)
        report = _report(stage, plan, reports, state.parameters(model, layers), [*notes, *plan.notes, *fitted], began)
        state.finish(model, plan, done, report)
    return report


def check_layerwise(recipe: Recipe) -> None:
    """Raise InputError for a recipe that needs more of the model than a layer at a time."""
    check_scorer(recipe.scorer)
    refused = None
    if recipe.removal != "units":
        refused = f"method {recipe.removal}"
    elif recipe.scorer not in BY_LAYERS:
        refused = f"scorer {recipe.scorer}"
    elif recipe.speedup is not None and not recipe.suggested:
        refused = f"choosing what makes decoding {recipe.speedup:g} times as fast"
    elif recipe.depth != "none" and not recipe.drop and recipe.speedup is None:
        refused = f"depth {recipe.depth}"
    elif recipe.swaps or recipe.healing:
        refused = "swaps" if recipe.swaps else "healing"
    if refused is not None:
        raise InputError(
            f"{refused[0].upper()}{refused[1:]} needs the whole model in memory; give --preset balanced or paper, a"
            f" scorer among {', '.join(BY_LAYERS)} without swaps and healing, or more --memory."
        )
    if recipe.calibration.data is None:
        raise InputError("The recipe was calibrated on text it does not name; give a file or a dataset.")


@torch.no_grad()
def _write(
    stage: Stage, plan: PruningPlan, state: State, progress: Progress | None, cancel: CancelEvent | None
) -> list[ModuleReport]:
    """Write every layer as the plan leaves it, and all that is no layer."""
    recipe, config, reports, ranks = plan.recipe, stage.model.config, [], joined()
    written = stage.model.written_dtype
    left = left_layers(stage.layers, plan.gone)
    for index in range(stage.layers):
        check_cancelled(cancel)
        known = state.reports(index, left)
        if known is None:
            layer = stage.layer(index)
            weights, biases, told = {}, {}, {}
            blocks = {block.key: block for block in stage.adapter.layer_blocks(layer, index, config)}
            for key in ranks.share_modules({key: block.solving for key, block in blocks.items()}):
                started, kept, block = time.monotonic(), plan.keep[key], blocks[key]
                stats = state.moments(key)
                if recipe.compensation == "paper" and 0 < len(kept) < block.units:
                    weights[key] = compensated(block, stats, kept, recipe.damping)
                elif recipe.compensation == "bias" and len(kept) < block.units:
                    biases[key] = mean_bias(block, stats, kept)
                took = time.monotonic() - started
                told[key] = module_report(block, stats, kept, weights.get(key), took)
            weights, biases = (
                {key: tensor.to(stage.device) for key, tensor in ranks.exchange(own).items()}
                for own in (weights, biases)
            )
            told = ranks.exchange(told)
            known = [told[key] for key in blocks]
            narrow = None
            if index in left:
                keep = {key: units for key, units in plan.keep.items() if key.layer == index}
                narrow = slice_layer(layer, stage.adapter, index, config, keep, weights, biases)
            state.write_layer(stage, index, left, narrow, written, known)
        reports += known
        if progress is not None:
            progress(index + 1, stage.layers, "writing the narrower layers")
    state.write_rest(stage, len(left), written, {})
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
