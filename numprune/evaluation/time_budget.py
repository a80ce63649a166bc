"""Recipes that spend a budget of decode time: what goes as a whole, by width, and how fast that is."""

from __future__ import annotations

import math
from dataclasses import replace

from numprune.allocation.remembered import RememberedTrial
from numprune.allocation.speedup import by_hand, candidate, check_speedup, choose_speedup, locked, price_scale
from numprune.allocation.threshold import allocate
from numprune.allocation.trial import Trial, trial_for
from numprune.calibration.run import calibrate
from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, Progress
from numprune.evaluation.latency import NEW_TOKENS, REPETITIONS, latency_of
from numprune.evaluation.speed_comparison import compare_speed
from numprune.models.depth import own_keys
from numprune.models.model import Model
from numprune.plan.keys import ModuleKey
from numprune.plan.latency import Latency
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import Recipe
from numprune.pruning import prune
from numprune.scoring.depth import DepthScores, score_depth
from numprune.scoring.run import score
from numprune.scoring.table import ScoreTable

SEQUENCES = 32
"""Of the calibration that a plan is measured on at most."""
FITTED = 0.5
"""Share of the loss of whole modules that the fit leaves, about; it decides only how many of them are scored."""
PATIENCE = 5
"""Modules more that may go as a whole without a plan of less loss, before no more are scored."""


def with_speedup(
    model: Model,
    stats: CalibrationStats,
    scores: ScoreTable,
    recipe: Recipe,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Recipe:
    """A recipe with what goes for its speed-up, chosen where it has one and that is not done; the others come back as
    they are. Decode times are those kept of the device, or measured now, and plans are pruned, fitted and measured
    (`numprune.choose_speedup`, `with_prices_of_the_rest`).

    Raises:
        InputError, NumericalError, Cancelled: as `latency_of`, `score_depth` and `choose_speedup`.
    """
    if recipe.speedup is None or recipe.suggested:
        return recipe
    check_speedup(recipe)
    steps = {"progress": progress, "cancel": cancel}
    latency = latency_of(model, **steps)
    trial = RememberedTrial(trial_for(model, stats, recipe, SEQUENCES, cancel))
    scale = price_scale(trial, scores, latency, recipe)
    depth = depth_for(model, stats, scores, latency, recipe, scale=scale, **steps)
    chosen = choose_speedup(scores, depth, latency, recipe, trial=trial, progress=progress)
    chosen = with_prices_of_the_rest(model, stats, scores, latency, recipe, chosen, trial=trial, **steps)
    trial.forget()
    return chosen


def depth_for(
    model: Model,
    stats: CalibrationStats,
    scores: ScoreTable,
    latency: Latency,
    recipe: Recipe,
    *,
    scale: float = 1.0,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> DepthScores | None:
    """What goes as a whole for a recipe's speed-up, or for a lower one: what costs least for the time it saves, as long
    as more of it may be worth it beside heads and channels. None where the recipe lets nothing go so.

    Args:
        scale: how many times their prices units cost, see `numprune.allocation.speedup.price_scale`.
    """
    if recipe.depth == "none":
        return None
    savings = {key: float(latency.of_module(key.kind, size)) for key, size in latency.modules.items()}
    due, stay = latency.dense / recipe.speedup, locked(recipe)
    losses: list[float] = []

    def until(gone: tuple[ModuleKey, ...], loss: float) -> bool:
        found = candidate(scores, latency, recipe, tuple(key for key in gone if key not in stay), loss)
        losses.append(found.scaled(scale, FITTED) if found.seconds <= due else math.inf)
        best = losses.index(min(losses))
        return math.isfinite(losses[best]) and (FITTED * loss >= losses[best] or len(losses) - best > PATIENCE)

    until((), 0.0)
    return score_depth(
        model,
        stats,
        scorer=recipe.depth_scorer,
        whole=recipe.depth,
        most=min((latency.dense - due) / sum(savings.values()), 0.999),
        savings=savings,
        until=until,
        progress=progress,
        cancel=cancel,
    )


def with_prices_of_the_rest(
    model: Model,
    stats: CalibrationStats,
    scores: ScoreTable,
    latency: Latency,
    recipe: Recipe,
    chosen: Recipe,
    *,
    trial: Trial,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Recipe:
    """A recipe chosen for a speed-up with the ratios that go by prices in the model without what goes as a whole, where
    the loss of that plan is measured to be less; `chosen` otherwise.

    Prices are taken in the dense model. Where other modules have gone and the rest was fitted, units cost something
    else: on SmolLM2 at 1.5 times as fast, ratios by these prices lost 5 % less.

    Args:
        recipe: that `chosen` was chosen for.
    """
    if not chosen.drop:
        return chosen
    priced = _priced_without(model, stats, scores, chosen, progress, cancel)
    gone = tuple(key for key in chosen.drop if key not in by_hand(recipe))
    other = candidate(priced, latency, recipe, gone, 0.0).recipe
    losses = [trial.loss(allocate(scores, each).keep) for each in (chosen, other)]
    return other if losses[1] < losses[0] else chosen


def _priced_without(
    model: Model,
    stats: CalibrationStats,
    scores: ScoreTable,
    chosen: Recipe,
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> ScoreTable:
    """The scores with the prices of the modules that stay taken where the others are gone and the rest is fitted."""
    steps = {"progress": progress, "cancel": cancel}
    plain = Recipe(calibration=chosen.calibration, ratio=0.0, scorer=chosen.scorer, drop=chosen.drop)
    plain = plain.replace(compensation=chosen.compensation, damping=chosen.damping, scarcity=chosen.scarcity)
    plan = allocate(scores, plain)
    rest = prune(model, plan, stats, **steps)
    rows = stats.token_rows("price what stays on").long()
    of_rest = calibrate(rest, rows, samples=len(rows), sequence_length=rows.shape[1], seed=stats.seed, **steps)
    table, before = score(rest, of_rest, scorer=chosen.scorer, **steps), own_keys(model.layers, plan.gone)
    found = {before[key]: module for key, module in table.modules.items() if len(module.units)}
    return replace(scores, modules={key: found.get(key, module) for key, module in scores.modules.items()})


def reached_speedup(
    model: Model,
    pruned: Model,
    plan: PruningPlan,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> str:
    """A sentence on how many times as fast the pruned model decodes, measured in turn with the dense one, beside what
    its recipe asked for and what the decode times by width predict."""
    latency = latency_of(model, progress=progress, cancel=cancel)
    timed = compare_speed(
        {"dense": model, "pruned": pruned},
        prompt_tokens=latency.prompt_tokens,
        new_tokens=NEW_TOKENS,
        batch=latency.batch,
        repetitions=REPETITIONS,
        progress=progress,
        cancel=cancel,
    )
    middle, low, high = timed.models[1].decode_gain
    predicted = latency.speedup({key: len(kept) * plan.costs[key] for key, kept in plan.keep.items()})
    return (
        f"Decodes {middle:.2f} times as fast ({low:.2f} to {high:.2f}, n = {REPETITIONS} in turn with the dense model,"
        f" batch {latency.batch}, {latency.device}, {latency.dtype}, {timed.threads} threads); {predicted:.2f} was"
        f" predicted and {plan.recipe.speedup:g} asked for."
    )
