"""The compensations that fit one module after the other, with one decoder layer of both models in memory."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from numprune.errors import CancelEvent, Progress, check_cancelled
from numprune.fitting.last_norm import fit_last_norm
from numprune.fitting.sequential import NetworkFit, check_damping
from numprune.layerwise.stage import Stage
from numprune.layerwise.state import State
from numprune.models.depth import left_layers
from numprune.models.model import slice_layer, twin
from numprune.plan.plan import PruningPlan
from numprune.plan.report import ModuleReport
from numprune.pruning import module_report
from numprune.ranks import joined


@torch.no_grad()
def write_fitted(
    stage: Stage,
    plan: PruningPlan,
    state: State,
    rows: torch.Tensor,
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> tuple[list[ModuleReport], list[str]]:
    """`numprune.fitting.sequential.fit_to_dense`, and every layer written as soon as it is fitted.

    Both residual streams of the calibration text, and what a layer is fitted to, lie on the CPU. They are kept beside
    the output behind every layer, so that an interrupted run goes on with the same bits.

    Returns:
        What was done to every module, and sentences for the report.
    """
    recipe, reports, numbers = plan.recipe, [], stage.batches(rows)
    batches = [rows[own] for own in numbers]
    check_damping(recipe.damping, recipe.scarcity)
    fit = NetworkFit(
        stage.calls(batches),
        stage.adapter,
        stage.device,
        keep=plan.keep if recipe.compensation == "network" else None,
        damping=recipe.damping,
        scarcity=recipe.scarcity,
        ranks=joined(),
        cancel=cancel,
    )
    begin, left = state.take_streams(fit), left_layers(stage.layers, plan.gone)
    for index in range(stage.layers):
        check_cancelled(cancel)
        known = state.reports(index, left) if index < begin else None
        if known is None:
            known = _write_layer(stage, plan, state, fit, index, left)
            state.keep_streams(index + 1, fit)
            # Modules and what looks into them hold each other, so a layer goes only when the collector finds it.
            gc.collect()
        reports += known
        if progress is not None:
            progress(index + 1, stage.layers, "fitting and writing layer by layer")
    changed, notes = {}, []
    if recipe.compensation == "network" and fit.touched:
        changed, notes = _last_norm(stage, fit, batches, numbers, recipe.damping, cancel)
    state.write_rest(stage, len(left), stage.model.written_dtype, changed)
    return reports, notes


def _write_layer(
    stage: Stage, plan: PruningPlan, state: State, fit: NetworkFit, index: int, left: Sequence[int]
) -> list[ModuleReport]:
    layer, config = stage.layer(index), stage.model.config
    narrow, fitted = None, {}
    if index in left:
        keep = {key: units for key, units in plan.keep.items() if key.layer == index}
        narrow = slice_layer(layer, stage.adapter, index, config, keep)
    fit.fit(index, layer, narrow)
    if narrow is not None:
        fitted = {block.key: block.last.weight.detach() for block in stage.adapter.layer_blocks(narrow, index, config)}
    known = []
    for block in stage.adapter.layer_blocks(layer, index, config):
        took = fit.seconds.get(block.key)
        weight = None if took is None else fitted[block.key]
        known.append(module_report(block, state.moments(block.key), plan.keep[block.key], weight, took or 0.0))
    state.write_layer(stage, index, left, narrow, stage.model.written_dtype, known)
    return known


def _last_norm(
    stage: Stage,
    fit: NetworkFit,
    batches: Sequence[torch.Tensor],
    numbers: Sequence[torch.Tensor],
    damping: float,
    cancel: CancelEvent | None,
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The gains of the last norm by the name of their tensor, and a note where there is one."""
    front = stage.front(head=True)
    fitted = _with_own_norm(stage, front)
    if fitted is None:
        return {}, []
    batches = [batch.to(stage.device) for batch in batches]
    note = fit_last_norm(
        front,
        fitted,
        stage.adapter,
        batches,
        fit.dense_stream,
        fit.pruned_stream,
        damping=damping,
        numbers=numbers,
        ranks=joined(),
        cancel=cancel,
    )
    weight = stage.adapter.final_norm(stage.model.module).weight
    name = next(name for name, each in stage.model.module.named_parameters() if each is weight)
    return {name: stage.adapter.final_norm(fitted).weight}, [note] if note else []


def _with_own_norm(stage: Stage, front: PreTrainedModel) -> PreTrainedModel | None:
    """A copy with a last norm of its own; None where there is no such norm."""
    other = twin(front)
    norm = stage.adapter.final_norm(other)
    if norm is None:
        return None
    norm.weight = nn.Parameter(norm.weight.detach().clone(), requires_grad=False)
    return other
