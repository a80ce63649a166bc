"""Methods side by side: the same model, calibration, held-out data and ratios, one cell at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from numprune.allocation.depth import choose_depth, depth_of
from numprune.allocation.search import sensitivity, suggest, uses_curves
from numprune.allocation.threshold import allocate
from numprune.calibration.run import calibrate_by_recipe, within_length
from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, InputError, Progress, UnsupportedArchitecture, check_cancelled
from numprune.evaluation import memory
from numprune.evaluation.cells import DENSE, Cell
from numprune.evaluation.measurement import Bench, check_measurable, measured_cell, run_of
from numprune.evaluation.time_budget import with_speedup
from numprune.models.model import Model
from numprune.plan.presets import METHODS, preset
from numprune.plan.recipe import Recipe
from numprune.pruning import prune
from numprune.scoring.run import score
from numprune.slicing.principal import slice_by_recipe
from numprune.slicing.stream import check_sliceable


def compare_methods(
    model: Model,
    methods: Sequence[str],
    ratios: Sequence[float],
    bench: Bench | Sequence[Bench],
    *,
    recipe: Recipe | None = None,
    seeds: Sequence[int] = (0,),
    done: Collection[Cell] = (),
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Iterator[Cell]:
    """Prune with every method at every ratio for every calibration seed, and measure; the dense model comes first.

    All methods of a seed share its calibration statistics. Memory never holds more than the dense model and one
    pruned one.

    Args:
        methods: names in `numprune.plan.presets.METHODS`.
        ratios: shares of the prunable parameters to remove, in (0, 1); for `fast`, of the decode time.
        bench: what to measure on; of several, every pruned model gives a cell for each.
        recipe: calibration, damping and rounding for all; its ratio and what a method decides are not used.
        seeds: of the calibration.
        done: cells that exist and are left out, of the same runs.

    Raises:
        UnsupportedArchitecture: a method cannot prune such a model.
        InputError: a name, ratio or seed is wrong, there is nothing to measure on, or `done` is of another run;
            what `prune` and the measurements raise, while cells are drawn.
        Cancelled: `cancel` was set.
    """
    recipe = recipe or Recipe()
    for name in methods:
        _check_method(model, name)
    recipes = [recipe.at(ratio) for ratio in ratios]
    if not (methods and recipes and seeds) or any(not asked.ratio for asked in recipes):
        raise InputError("Give at least one method, one ratio above 0 (the dense model is always there) and one seed.")
    benches = [bench] if isinstance(bench, Bench) else list(bench)
    for held_out in benches:
        check_measurable(model, held_out)
    runs = {run_of(model, recipe, held_out): held_out for held_out in benches}
    if any(cell.run not in runs for cell in done):
        raise InputError(
            "The cells that exist were made with another model, calibration or held-out data; write to another file."
        )
    measured = {(cell.run, *cell.configuration) for cell in done}
    return _cells(model, methods, recipes, runs, seeds, measured, progress, cancel)


def _cells(
    model: Model,
    methods: Sequence[str],
    recipes: Sequence[Recipe],
    runs: Mapping[str, Bench],
    seeds: Sequence[int],
    measured: Collection[tuple[str, str, float, int]],
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> Iterator[Cell]:
    """The cells missing in `measured`, which holds run, method, ratio and seed of those that exist."""
    wanted = []
    for seed, recipe, method in product(seeds, recipes, methods):
        missing = [run for run in runs if (run, method, recipe.ratio, seed) not in measured]
        if missing:
            wanted.append((method, recipe, seed, missing))
    for run, bench in runs.items():
        dense = (DENSE, 0.0, seeds[0])
        if (run, *dense) not in measured:
            yield measured_cell(model, model, bench, run, dense, cancel=cancel)
    stats, of_seed, shared = None, None, Shared(model.device)
    most = max(recipe.ratio for recipe in recipes)
    for index, (method, recipe, seed, missing) in enumerate(wanted):
        check_cancelled(cancel)
        if progress is not None:
            progress(index, len(wanted), f"{method} at {recipe.ratio:g}, seed {seed}")
        if stats is None or of_seed != seed:
            source = replace(within_length(model, recipe.calibration), seed=seed)
            stats, of_seed, shared = calibrate_by_recipe(model, source, cancel=cancel), seed, Shared(model.device)
        pruned = pruned_by(model, stats, method, recipe, shared=shared, most=most, cancel=cancel)
        for run in missing:
            yield measured_cell(
                model,
                pruned.model,
                runs[run],
                run,
                (method, recipe.ratio, seed),
                reached=pruned.reached,
                seconds=pruned.seconds,
                peak_bytes=pruned.peak_bytes,
                cancel=cancel,
            )
        del pruned
    if progress is not None:
        progress(len(wanted), len(wanted), "comparing methods")


def methods_for(model: Model) -> list[str]:
    """The methods that can prune such a model."""
    able = []
    for name in METHODS:
        with suppress(UnsupportedArchitecture):
            _check_method(model, name)
            able.append(name)
    return able


def _check_method(model: Model, name: str) -> None:
    if preset(name).settings.get("removal") == "slicegpt":
        check_sliceable(model.adapter, model.config, model.name)


@dataclass(frozen=True)
class Pruned:
    """A model pruned by a named method.

    Attributes:
        reached: share of the prunable parameters that went.
        seconds, peak_bytes: as in `Cell`; shared work counts as if it had been done anew.
    """

    model: Model
    reached: float
    seconds: float
    peak_bytes: int | None


class Shared:
    """Scores, curves and ratios of one model and calibration, which several methods and ratios have in common.

    Each is computed once; `saved` sums up the seconds that was worth since the last `begin`, and `peak_bytes` is the
    most memory that took.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: dict[tuple[str, str], tuple[Any, float, int | None]] = {}
        self.begin()

    def begin(self) -> None:
        """Count from here."""
        self.saved, self.peak_bytes = 0.0, None
        if memory.measurable(self._device):
            memory.reset_peak(self._device)

    def get(self, what: str, of: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, from an earlier call with the same names when there was one."""
        if (what, of) in self._kept:
            value, seconds, peak = self._kept[what, of]
            self.saved += seconds
            self._note(peak)
            return value
        began = time.monotonic()
        value = make()
        self._kept[what, of] = value, time.monotonic() - began, self._peak()
        return value

    def end(self) -> int | None:
        """Most memory in use since `begin`, the work that was saved included; None where it is not known."""
        self._note(self._peak())
        return self.peak_bytes

    def _peak(self) -> int | None:
        return memory.peak(self._device) if memory.measurable(self._device) else None

    def _note(self, peak: int | None) -> None:
        if peak is not None:
            self.peak_bytes = max(peak, self.peak_bytes or 0)


def pruned_by(
    model: Model,
    stats: CalibrationStats,
    method: str,
    recipe: Recipe,
    *,
    shared: Shared | None = None,
    most: float | None = None,
    cancel: CancelEvent | None = None,
) -> Pruned:
    """The model pruned by a named method with the ratio, locks and rounding of a recipe. `fast` removes the ratio of
    the decode time on this device, the others of the parameters.

    Args:
        shared: what earlier calls for the model computed.
        most: the highest ratio of the calls that share, the recipe's own by default.
    """
    began, shared = time.monotonic(), shared or Shared(model.device)
    shared.begin()
    chosen = preset(method)
    recipe = chosen.applied(recipe)
    if recipe.speedup is not None:
        recipe = recipe.for_speedup(1 / (1 - recipe.ratio))
    if recipe.removal == "slicegpt":
        sliced = slice_by_recipe(model, stats, recipe, cancel=cancel)
        return Pruned(sliced, sliced.report.ratio_reached, time.monotonic() - began, shared.end())
    scores = shared.get("scores", recipe.scorer, lambda: score(model, stats, scorer=recipe.scorer, cancel=cancel))
    if chosen.suggests:
        # Neither depends on healing, nor the curves on the ratio.
        plain, curves = recipe.replace(healing=0), None
        if uses_curves(scores, plain):
            curves = shared.get(
                "curves",
                plain.replace(ratio=0.0).to_json(),
                lambda: sensitivity(model, stats, scores, plain, cancel=cancel),
            )
        suggested = shared.get(
            "ratios", plain.to_json(), lambda: suggest(model, stats, scores, plain, curves=curves, cancel=cancel)
        )
        recipe = suggested.replace(healing=recipe.healing)
    if recipe.speedup is not None:
        recipe = with_speedup(model, stats, scores, recipe, cancel=cancel)
    elif recipe.depth != "none":
        # One order for all ratios that are compared.
        of = f"{recipe.depth} by {recipe.depth_scorer}"
        depth = shared.get("depth", of, lambda: depth_of(model, stats, recipe, most=most, cancel=cancel))
        recipe = choose_depth(scores, depth, recipe)
    plan = allocate(scores, recipe)
    pruned = prune(model, plan, stats, cancel=cancel)
    return Pruned(pruned, plan.ratio_reached, time.monotonic() - began + shared.saved, shared.end())
