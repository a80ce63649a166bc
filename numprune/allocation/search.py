"""Ratios from the model's own loss: what each module costs when it alone is pruned, and the budget spent by that.

Scores compare units; they do not see that a whole MLP in the middle may cost almost nothing and layer 0 very much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from numprune.allocation.cuts import ModuleCut
from numprune.allocation.exchange import exchange_budget, pinned, removed_parameters, spends
from numprune.allocation.remembered import RememberedTrial
from numprune.allocation.threshold import allocate
from numprune.allocation.tilts import TRIALS, search_tilts
from numprune.allocation.trial import MaskedTrial, trial_for
from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, InputError, Progress, check_cancelled
from numprune.models.model import Model
from numprune.plan.keys import ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import SEQUENTIAL, Recipe
from numprune.scoring.table import ScoreTable

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
WORTHWHILE = 0.2
"""Loss in nats a token that the exchange of budget, the slowest step, is worth."""
MODULES = 24
"""Modules a model has at most for a curve of each and exchanges between them; with more, their prices are tilted."""


@dataclass(frozen=True)
class Sensitivity:
    """How the calibration loss rises when one module alone loses its lowest-scored units, with compensation.

    Attributes:
        removed: parameters removed at each point of a module's curve, ascending from 0.
        increase: loss minus the dense loss there, in nats per token; 0 at the first point.
        loss: of the dense model, in nats per token.
        tokens: tokens the loss is a mean of.
    """

    removed: dict[ModuleKey, np.ndarray]
    increase: dict[ModuleKey, np.ndarray]
    loss: float
    tokens: int

    def to_pandas(self) -> pd.DataFrame:
        """One row per point: layer, module, parameters removed, share of the module's, loss increase."""
        rows = [
            {
                "layer": key.layer,
                "module": key.kind,
                "parameters_removed": int(removed),
                "share": removed / self.removed[key][-1] if self.removed[key][-1] else 0.0,
                "loss_increase": float(increase),
            }
            for key in self.removed
            for removed, increase in zip(self.removed[key], self.increase[key], strict=True)
        ]
        return pd.DataFrame(rows)


def sensitivity(
    model: Model,
    stats: CalibrationStats,
    scores: ScoreTable,
    recipe: Recipe,
    *,
    fractions: Sequence[float] = FRACTIONS,
    samples: int = 32,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Sensitivity:
    """Prune every module alone to a few sizes and record the calibration loss.

    Nothing is sliced: columns of the last linear are set to zero in a twin that shares all other weights, which
    computes the same. The model runs once per module and fraction over `samples` calibration sequences. Units the
    recipe forces stay forced, and modules it pins are left out.

    Args:
        fractions: shares of the units that may go; 1 is all of them but one (or all with allow_empty).
        samples: calibration sequences the loss is measured on.

    Raises:
        InputError: the statistics hold no token ids, or a fraction is outside (0, 1].
        Cancelled: `cancel` was set.
    """
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise InputError(f"fractions is {tuple(fractions)}; give shares above 0 and at most 1.")
    trial = MaskedTrial(model, stats, recipe, samples)
    remembered = RememberedTrial(trial)
    curves = _curves(remembered, trial.tokens, scores, recipe, fractions, progress, cancel)
    remembered.forget()
    return curves


def _curves(
    trial: RememberedTrial,
    tokens: int,
    scores: ScoreTable,
    recipe: Recipe,
    fractions: Sequence[float],
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> Sensitivity:
    dense = trial.dense_loss()
    free = [key for key in scores.modules if key not in recipe.ratios and key not in recipe.drop]
    removed, increase = {}, {}
    for done, key in enumerate(free, 1):
        units, cost = len(scores.modules[key].units), scores.modules[key].cost
        sizes, losses = [0], [dense]
        for fraction in sorted(fractions):
            check_cancelled(cancel)
            kept = _alone(scores, recipe, key, fraction)
            if (units - len(kept)) * cost > sizes[-1]:
                sizes.append((units - len(kept)) * cost)
                losses.append(trial.loss({key: kept}))
        removed[key], increase[key] = np.array(sizes), np.array(losses) - dense
        if progress is not None:
            progress(done, len(free), "measuring what each module costs")
    return Sensitivity(removed, increase, dense, tokens)


def suggest(
    model: Model,
    stats: CalibrationStats,
    scores: ScoreTable,
    recipe: Recipe,
    *,
    curves: Sensitivity | None = None,
    samples: int = 32,
    rounds: int = 2,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Recipe:
    """The recipe with a ratio for every module, chosen by the model's calibration loss.

    With more than 24 modules to choose for, prices are tilted between heads and channels and along the depth
    (`numprune.allocation.tilts`), and the tilt of least loss among at most 8 is taken. With fewer, the curves of
    `sensitivity` are added up and the budget is spent where the loss rises least per parameter; because losses of
    several modules do not simply add, the result is blended with the plan of the recipe's own allocation, each blend is
    measured, and the best one is taken. Either way that plan itself is among them, so that the calibration loss is
    never worse than without. Under the compensations that fit one module after the other, plans
    are really pruned and fitted, and measured on sequences the fit does not see. Where more than 0.2 nats are lost
    then, budget is exchanged between modules while that loss falls (`numprune.allocation.exchange`). Locked ratios and
    forced units stay. A search that was stopped, or whose process ended, goes on from the losses it has measured when
    it is made again (`numprune.allocation.remembered`).

    Args:
        curves: from `sensitivity` with this recipe; measured when left out.
        samples: calibration sequences the loss is measured on.
        rounds: of exchanges at most.

    Raises:
        InputError: the recipe wants the same counts in every layer; else, and Cancelled, as `sensitivity`.
    """
    if recipe.uniform:
        raise InputError(
            "Suggested ratios differ from layer to layer but the recipe wants the same counts in each; drop uniform."
        )
    remembered = RememberedTrial(trial_for(model, stats, recipe, samples, cancel))
    start = allocate(scores, recipe)
    if curves is None and not uses_curves(scores, recipe):
        suggested = _by_tilts(remembered, scores, recipe, start, progress, cancel)
    else:
        masked = MaskedTrial(model, stats, recipe, samples)
        alone = RememberedTrial(masked)
        if curves is None:
            curves = _curves(alone, masked.tokens, scores, recipe, FRACTIONS, progress, cancel)
        suggested = _by_curves(remembered, curves, scores, recipe, start, rounds, progress, cancel)
        alone.forget()
    remembered.forget()
    return suggested.replace(suggested=True)


def uses_curves(scores: ScoreTable, recipe: Recipe) -> bool:
    """Whether `suggest` measures the curves of `sensitivity`, which is slow where there are many modules."""
    return len(scores.modules) - len(recipe.ratios) - len(recipe.drop) <= MODULES


def _by_tilts(
    trial: RememberedTrial,
    scores: ScoreTable,
    recipe: Recipe,
    start: PruningPlan,
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> Recipe:
    """The ratios of the tilted prices of least loss."""
    done = 0

    def loss(plan: PruningPlan) -> float:
        nonlocal done
        check_cancelled(cancel)
        found = trial.loss(plan.keep) if spends(plan, start) else np.inf
        done += 1
        if progress is not None:
            progress(done, TRIALS, "measuring tilted prices")
        return found

    *_, best = search_tilts(loss, scores, recipe)
    free = [key for key in scores.modules if key not in recipe.ratios and key not in recipe.drop]
    return pinned(recipe, best, removed_parameters(best, free))


def _by_curves(
    trial: RememberedTrial,
    curves: Sensitivity,
    scores: ScoreTable,
    recipe: Recipe,
    start: PruningPlan,
    rounds: int,
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> Recipe:
    """The ratios of the best blend of the scores' plan with what the curves ask for, after exchanges of budget."""
    by_score = removed_parameters(start, curves.removed)
    by_loss = spend(curves, sum(by_score.values()))
    best, best_loss = recipe, np.inf
    for done, share in enumerate(BLENDS, 1):
        check_cancelled(cancel)
        amounts = {key: (1 - share) * by_score[key] + share * by_loss[key] for key in by_score}
        candidate = recipe if share == 0 else pinned(recipe, start, amounts)
        plan = allocate(scores, candidate)
        loss = trial.loss(plan.keep) if spends(plan, start) else np.inf
        if loss < best_loss:
            best, best_loss = candidate, loss
        if progress is not None:
            progress(done, len(BLENDS), "measuring the suggestions")
    if best is recipe:
        best = pinned(recipe, start, by_score)
    if recipe.compensation in SEQUENTIAL and best_loss - trial.dense_loss() > WORTHWHILE:
        best = exchange_budget(trial, scores, best, best_loss, list(by_score), rounds, progress=progress, cancel=cancel)
    return best


def spend(curves: Sensitivity, budget: float) -> dict[ModuleKey, float]:
    """Parameters to remove from each module so that the sum of the (convex hulls of the) curves is least."""
    segments = []
    for key in curves.removed:
        # A module is not cut to where the loss is infinite.
        finite = np.isfinite(curves.increase[key])
        hull = _lower_hull(curves.removed[key][finite], curves.increase[key][finite])
        segments += [
            ((right[1] - left[1]) / (right[0] - left[0]), key, right[0] - left[0]) for left, right in pairwise(hull)
        ]
    taken = dict.fromkeys(curves.removed, 0.0)
    for _, key, size in sorted(segments, key=lambda segment: segment[0]):
        step = min(size, budget)
        taken[key] += step
        budget -= step
        if budget <= 0:
            break
    return taken


def _lower_hull(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    hull: list[tuple[float, float]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(hull) > 1 and _turns_up(hull[-2], hull[-1], point) <= 0:
            hull.pop()
        hull.append(point)
    return hull


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _alone(scores: ScoreTable, recipe: Recipe, key: ModuleKey, fraction: float) -> tuple[int, ...]:
    """The units a module keeps when it alone loses a share of its units, as far as it may, without rounding."""
    cut = ModuleCut.of(key, scores.modules[key], recipe.replace(round_heads=1, round_channels=1))
    return cut.kept_by_ratio(fraction)
