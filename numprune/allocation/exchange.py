"""Budget exchanged between modules while the loss of the pruned and fitted model falls.

Scores and sensitivity curves price what a module loses in the dense network. In the pruned one prices are others, and
the fit of later modules makes up for part of them. So they are measured in the pruned one: every module in turn gets
some parameters back, and loses some more. Modules that gain most then get budget from those where it costs least, and
an exchange that does not lower the loss is not taken.
"""

from __future__ import annotations

from collections.abc import Iterable

from numprune.allocation.cuts import ModuleCut
from numprune.allocation.threshold import allocate
from numprune.allocation.trial import Trial
from numprune.errors import CancelEvent, Progress, check_cancelled
from numprune.plan.keys import ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import Recipe
from numprune.scoring.table import ScoreTable

STEP = 0.15
"""Parameters moved at a time, as a share of what a module has on average; halved when nothing helped."""
PAIRS = (1, 2, 3, 4)


def exchange_budget(
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

    A round measures two trials per module, then exchanges between the one, two, three and four modules that gain most
    and as many where it costs least.

    Args:
        recipe: with a ratio for the modules in `free` but one.
        loss: of its plan, in nats a token.
    """
    plan = allocate(scores, recipe)
    share, exact = STEP, recipe.replace(ratios={k: r for k, r in recipe.ratios.items() if k not in free})
    for done in range(1, rounds + 1):
        check_cancelled(cancel)
        step = share * sum(plan.units[key] * plan.costs[key] for key in free) / max(1, len(free))
        removed = removed_parameters(plan, free)
        gain, cost = _prices(trial, scores, plan, free, loss, step, cancel)
        better = None
        tried = [removed]
        for pairs in PAIRS:
            amounts = _exchanged(removed, gain, cost, plan, step, pairs)
            if amounts in tried:
                continue
            tried.append(amounts)
            check_cancelled(cancel)
            candidate = pinned(exact, plan, amounts)
            changed = allocate(scores, candidate)
            if not spends(changed, plan):
                continue
            changed_loss = trial.loss(changed.keep)
            if changed_loss < loss:
                better, loss = (candidate, changed), changed_loss
        if better is None:
            share /= 2
        else:
            recipe, plan = better
        if progress is not None:
            progress(done, rounds, "exchanging budget between modules")
    return recipe


def removed_parameters(plan: PruningPlan, keys: Iterable[ModuleKey]) -> dict[ModuleKey, float]:
    """Parameters a plan removes from each of these modules."""
    return {key: float((plan.units[key] - len(plan.keep[key])) * plan.costs[key]) for key in keys}


def spends(plan: PruningPlan, start: PruningPlan) -> bool:
    """Whether a plan removes at least as many parameters as another, less the cost of its smallest unit.

    Coarse units can keep a plan from its budget, and it must not look better for removing less.
    """
    removed, due = (sum(removed_parameters(which, which.keep).values()) for which in (plan, start))
    return removed >= due - min(plan.costs.values())


def pinned(recipe: Recipe, plan: PruningPlan, amounts: dict[ModuleKey, float]) -> Recipe:
    """The recipe with a ratio for every module but one, which takes up the rounding of the others.

    Args:
        amounts: parameters to remove from each module.
    """
    ratios = {key: min(amount / (plan.units[key] * plan.costs[key]), 1 - 1e-9) for key, amount in amounts.items()}
    # The module with the finest steps of those that are neither whole nor empty.
    partial = [key for key, ratio in ratios.items() if 0.05 < ratio < 0.95] or list(ratios)
    unset = min(partial, key=lambda key: plan.costs[key])
    return recipe.replace(ratios={**recipe.ratios, **{key: r for key, r in ratios.items() if key != unset}})


def _prices(
    trial: Trial,
    scores: ScoreTable,
    plan: PruningPlan,
    free: list[ModuleKey],
    loss: float,
    step: float,
    cancel: CancelEvent | None,
) -> tuple[dict[ModuleKey, float], dict[ModuleKey, float]]:
    """What a module gains by getting `step` parameters back and costs by losing as many more, in nats a parameter;
    modules that have all their units, or have lost all they may, are left out of one or the other."""
    removed = removed_parameters(plan, free)
    gain, cost = {}, {}
    for key in free:
        size = max(step, plan.costs[key])
        for prices, sign in ((gain, -1), (cost, 1)):
            check_cancelled(cancel)
            keep = {**plan.keep, key: _resized(scores, plan, key, removed[key] + sign * size)}
            change = (len(plan.keep[key]) - len(keep[key])) * plan.costs[key]
            if change * sign > 0:
                prices[key] = (trial.loss(keep) - loss) / change
    return gain, cost


def _resized(scores: ScoreTable, plan: PruningPlan, key: ModuleKey, removed: float) -> tuple[int, ...]:
    """The units a module keeps when it loses so many parameters."""
    cut = ModuleCut.of(key, scores.modules[key], plan.recipe)
    return cut.kept_by_ratio(removed / (plan.units[key] * plan.costs[key]))


def _exchanged(
    removed: dict[ModuleKey, float],
    gain: dict[ModuleKey, float],
    cost: dict[ModuleKey, float],
    plan: PruningPlan,
    step: float,
    pairs: int,
) -> dict[ModuleKey, float]:
    """Parameters to remove when the modules that gain most get some back from as many where they cost least."""
    amounts = dict(removed)
    takers = sorted(gain, key=gain.__getitem__, reverse=True)[:pairs]
    givers = sorted(cost, key=cost.__getitem__)[:pairs]
    for taker, giver in zip(takers, givers, strict=False):
        if taker == giver or gain[taker] <= cost[giver]:
            break
        headroom = (plan.units[giver] - 1) * plan.costs[giver] - amounts[giver]
        size = min(max(step, plan.costs[taker], plan.costs[giver]), amounts[taker], headroom)
        amounts[taker] -= size
        amounts[giver] += size
    return amounts
