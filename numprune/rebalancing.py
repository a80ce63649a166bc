"""Budget exchanged between modules while the loss of the really pruned and fitted model falls.

Scores and sensitivity curves price what a module loses in the dense network. What the next units cost in the pruned
network is measured there: each module of the fitted model loses a little more, with compensation. Modules whose next
units are dear then get some back from those whose next units are cheap, and what does not help is not taken.
"""

from __future__ import annotations

from collections.abc import Iterable

from numprune.allocation import PruningPlan, allocate
from numprune.calibration import calibrate
from numprune.errors import CancelEvent, Progress, check_cancelled
from numprune.models.adapter import ModuleKey
from numprune.probe import Probe, Trial
from numprune.recipe import Recipe
from numprune.scoring.table import ScoreTable

STEP = 0.15
"""Parameters moved at a time, as a share of what a module has on average; halved when nothing helped."""
PAIRS = (1, 2, 3, 4)


def rebalance(
    trial: Trial,
    scores: ScoreTable,
    recipe: Recipe,
    loss: float,
    free: list[ModuleKey],
    rounds: int,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Recipe:
    """The recipe with other ratios in `free` and the same budget, whose loss in `trial` is not above `loss`.

    A round fits the model once, measures a price per module on it, and tries to exchange budget between the one, two,
    three and four dearest and cheapest modules.

    Args:
        recipe: with a ratio for the modules in `free` but one.
        loss: of its plan, in nats a token.
    """
    plan = allocate(scores, recipe)
    share, exact = STEP, recipe.replace(ratios={k: r for k, r in recipe.ratios.items() if k not in free})
    for done in range(1, rounds + 1):
        check_cancelled(cancel)
        step = share * sum(plan.units[key] * plan.costs[key] for key in free) / max(1, len(free))
        prices = _prices(trial, scores, plan, free, step, cancel)
        removed = removed_parameters(plan, free)
        better = None
        tried = [removed]
        for pairs in PAIRS:
            amounts = _exchanged(removed, prices, plan, step, pairs)
            if amounts in tried:
                continue
            tried.append(amounts)
            check_cancelled(cancel)
            candidate = pinned(exact, plan, amounts)
            found = trial.loss(allocate(scores, candidate).keep)
            if found < loss:
                better, loss = candidate, found
        if better is None:
            share /= 2
        else:
            recipe, plan = better, allocate(scores, better)
        if progress is not None:
            progress(done, rounds, "exchanging budget between modules")
    return recipe


def removed_parameters(plan: PruningPlan, keys: Iterable[ModuleKey]) -> dict[ModuleKey, float]:
    """Parameters that go from each of these modules."""
    return {key: float((plan.units[key] - len(plan.keep[key])) * plan.costs[key]) for key in keys}


def pinned(recipe: Recipe, plan: PruningPlan, amounts: dict[ModuleKey, float]) -> Recipe:
    """The recipe with a ratio for every module but one, which takes up the rounding of the others.

    Args:
        amounts: parameters to remove from each module.
    """
    ratios = {key: min(amount / (plan.units[key] * plan.costs[key]), 1 - 1e-9) for key, amount in amounts.items()}
    # The module with the finest steps of those that are neither whole nor gone.
    inner = [key for key, ratio in ratios.items() if 0.05 < ratio < 0.95] or list(ratios)
    loose = min(inner, key=lambda key: plan.costs[key])
    return recipe.replace(ratios={**recipe.ratios, **{key: r for key, r in ratios.items() if key != loose}})


def _prices(
    trial: Trial, scores: ScoreTable, plan: PruningPlan, free: list[ModuleKey], step: float, cancel: CancelEvent | None
) -> dict[ModuleKey, float]:
    """What the next `step` parameters of a module cost in the pruned network, in nats a parameter; modules that can
    lose no more are left out."""
    pruned = trial.pruned(plan.keep)
    length = trial.fit_rows.shape[1]
    stats = calibrate(pruned, trial.fit_rows, samples=len(trial.fit_rows), sequence_length=length, cancel=cancel)
    stats.rows = trial.rows
    probe = Probe(pruned, stats, plan.recipe, len(trial.rows))
    dense = probe.loss({})
    prices = {}
    for key in free:
        check_cancelled(cancel)
        kept, cost = plan.keep[key], plan.costs[key]
        pinned_units = set(plan.recipe.keep.get(key, ()))
        ranked = sorted(
            (place for place, unit in enumerate(kept) if unit not in pinned_units),
            key=lambda place, key=key, kept=kept: scores.modules[key].units[kept[place]],
        )
        gone = set(ranked[: max(1, round(step / cost))])
        if len(gone) < len(kept):
            left = tuple(place for place in range(len(kept)) if place not in gone)
            prices[key] = (probe.loss({key: left}) - dense) / (len(gone) * cost)
    return prices


def _exchanged(
    removed: dict[ModuleKey, float], prices: dict[ModuleKey, float], plan: PruningPlan, step: float, pairs: int
) -> dict[ModuleKey, float]:
    """Parameters to remove when the dearest modules get some back from as many of the cheapest."""
    amounts = dict(removed)
    cheap = sorted(prices, key=prices.__getitem__)
    # A module that can lose no more may still be too dear as it is.
    dear = [key for key in removed if key not in prices] + cheap[::-1]
    dear = [key for key in dear if removed[key] > 0]
    for back, more in zip(dear[:pairs], cheap[:pairs], strict=False):
        if back == more or prices.get(back, prices[more]) < prices[more]:
            break
        room = (plan.units[more] - 1) * plan.costs[more] - removed[more]
        size = min(max(step, plan.costs[back], plan.costs[more]), removed[back], room)
        amounts[back] -= size
        amounts[more] += size
    return amounts
