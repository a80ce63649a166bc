"""From scores and a recipe to the units every module keeps (paper, section 3.3).

`global` sorts the steps of all modules by score and takes them until the parameter budget is met; `uniform` cuts all
modules by one ratio first. Where a recipe wants the same counts in every layer, all layers are cut together as if they
were one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from numprune.allocation.cuts import Levels, ModuleCut, Steps, joined
from numprune.errors import InputError
from numprune.plan.keys import KINDS, Kind, ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import Recipe
from numprune.scoring.table import ScoreTable

SCORED_FOR = 0.5
"""The ratio that scores of a recipe are computed for, see `numprune.score`."""


class Cuts:
    """The ways all modules of a model can lose units under a recipe, whatever its ratio.

    Attributes:
        modules: the cut of every module.
        groups: what is cut as one: the modules, or with `recipe.uniform` the attention and the MLPs of all layers.
        free: the groups that share what is left of the budget.
        start: the level of every group before that: 0, or the one of its own ratio.
        dropped: the modules the recipe drops as a whole, which are in no group.
        prunable: parameters that belong to units.
        notes: what keeps modules from their own ratios, in sentences.
    """

    def __init__(self, scores: ScoreTable, recipe: Recipe) -> None:
        self.dropped = {key: scores.modules[key] for key in recipe.drop}
        rest = {key: module for key, module in scores.modules.items() if key not in self.dropped}
        self.modules = {key: ModuleCut.of(key, module, recipe) for key, module in rest.items()}
        self.prunable = scores.prunable_parameters
        self.allocation, self.uniform = recipe.allocation, recipe.uniform
        self.notes: list[str] = []
        self.groups: dict[Any, ModuleCut] = self.modules
        ratios: Mapping[Any, float] = recipe.ratios
        if recipe.uniform:
            self.groups = joined(self.modules, recipe)
            ratios = _shared_ratios(self.modules, recipe, self.notes)
        self.start: Levels = dict.fromkeys(self.groups, 0)
        for key, ratio in ratios.items():
            group = self.groups[key]
            self.start[key] = group.nearest(ratio * group.units)
            if abs(group.total(self.start[key]) - ratio * group.units) > group.coarsest:
                self.notes.append(
                    f"{key} loses {group.total(self.start[key])} of {group.units} units instead of the {ratio:.1%} of"
                    " its ratio: units forced to stay or to go, and the last one, leave no more."
                )
        self.free = {key: cut for key, cut in self.groups.items() if key not in ratios}
        # What is cut unit by unit goes in the order of the table, which is sorted already.
        by_unit = not self.uniform and all(cut.coarsest == 1 for cut in self.free.values())
        self._ranking = scores.ranking if by_unit else None

    @cached_property
    def steps(self) -> Steps:
        """The steps of all free groups, each weighing the parameters that go."""
        if self._ranking is not None:
            return Steps.of_units(self._ranking, self.free)
        return Steps.of(self.free, self.start, lambda cut: cut.cost)

    @cached_property
    def printed_steps(self) -> Steps:
        """The same with the head scores of the paper, each weighing its units."""
        return Steps.of({key: cut.scaled() for key, cut in self.free.items()}, self.start, lambda cut: 1)

    @cached_property
    def spent_before(self) -> int:
        """Parameters removed before anything is taken of the budget."""
        return self.spent(self.start)

    def levels(self, ratio: float) -> Levels:
        """The level of every group when this share of the prunable parameters is to go."""
        budget = ratio * self.prunable
        levels = self.start | _RULES[self.allocation](self, ratio, budget - self.spent_before)
        if self.uniform and "mlp" in self.free and self.allocation in ("global", "uniform"):
            # What whole steps of heads left or overdrew is made up in channels.
            channels = self.free["mlp"]
            rest = budget - self.spent(levels)
            levels["mlp"] = channels.nearest(channels.total(levels["mlp"]) + rest / channels.cost)
        return levels

    def by_module(self, levels: Levels) -> Levels:
        """The level of every module, whose group keeps as many units as it does."""
        if not self.uniform:
            return levels
        kept = {kind: group.units - group.total(levels[kind]) for kind, group in self.groups.items()}
        return {key: cut.units - len(cut.forced) - kept[key.kind] for key, cut in self.modules.items()}

    def spent(self, levels: Levels) -> int:
        """Parameters removed at these levels of the groups."""
        by_module = self.by_module(levels)
        whole = sum(len(module.units) * module.cost for module in self.dropped.values())
        return whole + sum(cut.total(by_module[key]) * cut.cost for key, cut in self.modules.items())

    def worth(self, levels: Levels) -> float:
        """The sum of score times parameters over what goes at these levels of the groups."""
        by_module = self.by_module(levels)
        whole = sum(float(module.units.sum()) * module.cost for module in self.dropped.values())
        return whole + sum(cut.lost(by_module[key]) * cut.cost for key, cut in self.modules.items())

    @cached_property
    def worth_before(self) -> float:
        """The same before anything is taken of the budget."""
        return self.worth(self.start)

    def outcomes(self, ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Parameters removed, and the sum of score times parameters over them, at each ratio to remove.

        With one threshold and no counts to share both are read off one cumulative sum over the steps.
        """
        if self.allocation == "global" and not self.uniform:
            spent, worth = self.steps.outcomes(ratios * self.prunable - self.spent_before)
            return self.spent_before + spent, self.worth_before + worth
        levels = [self.levels(float(ratio)) for ratio in ratios]
        return np.array([self.spent(each) for each in levels]), np.array([self.worth(each) for each in levels])


_LATELY = 4
_kept: WeakKeyDictionary[ScoreTable, list[tuple[Recipe, Cuts]]] = WeakKeyDictionary()
_keeping = threading.Lock()


def cuts_of(scores: ScoreTable, recipe: Recipe) -> Cuts:
    """The cuts of a recipe; those of the last few recipes are kept with the table, since ratios move in small steps.

    Raises:
        InputError: as `allocate`.
    """
    recipe.check_for(
        scores.model, [scores.fingerprint], {key: len(module.units) for key, module in scores.modules.items()}
    )
    if scores.scorer != recipe.scorer:
        raise InputError(
            f"The recipe goes by scorer {recipe.scorer} and these scores are of {scores.scorer}; score the model by"
            f" {recipe.scorer}, or change the recipe's scorer."
        )
    whatever_ratio = recipe.replace(ratio=0.0)
    with _keeping:
        known = _kept.get(scores, [])
    found = next((cuts for asked, cuts in known if asked == whatever_ratio), None)
    if found is None:
        found = Cuts(scores, whatever_ratio)
        with _keeping:
            _kept[scores] = [(whatever_ratio, found), *known][:_LATELY]
    return found


def allocate(scores: ScoreTable, recipe: Recipe) -> PruningPlan:
    """Choose the units every module keeps.

    `recipe.ratio` is the share of prunable parameters to remove. The plan reaches it within one unit's cost
    (one step's, when kept counts are rounded), or its notes say what stopped it. Modules named in
    `recipe.ratios` get the nearest possible number of units to their own ratio, and count towards the budget. With a
    recipe that removes no units (SliceGPT) all are kept, and the notes say so.

    With `recipe.uniform` every layer keeps as many heads, and as many channels, as every other. A step then takes the
    lowest unit of each layer that is left and is sorted by the mean of their scores; what whole steps of heads leave of
    the budget is made up in channels, so that the ratio is reached within one channel of every layer. A ratio set for
    one layer holds for all, the layer with the most units forced to stay sets the fewest that all keep, and the one
    with the most forced to go the most.

    A speed-up that nothing is chosen for yet is not reached by this; the ratio counts, and the notes say so.

    Raises:
        InputError: the scores are another scorer's than the recipe's, the recipe belongs to another model, names
            modules or units that do not exist, or wants the same counts in every layer and different ones at once.
    """
    if recipe.removal != "units":
        units = {key: len(module.units) for key, module in scores.modules.items()}
        recipe.check_for(scores.model, [scores.fingerprint], units)
        return _whole(scores, units, recipe)
    cuts = cuts_of(scores, recipe)
    notes: list[str] = []
    if scores.ratio != SCORED_FOR:
        notes.append(
            f"The scores are for a ratio of {scores.ratio:g}; the recipe alone, carried out again, scores for"
            f" {SCORED_FOR:g}."
        )
    if recipe.speedup is not None and not recipe.suggested:
        notes.append(
            f"Nothing is chosen yet for a speed-up of {recipe.speedup:g} (numprune.with_speedup); this plan spends"
            f" {recipe.ratio:.0%} of the parameters."
        )
    levels = cuts.levels(recipe.ratio)
    notes += cuts.notes
    if recipe.allocation == "paper_printed":
        notes.append("paper_printed removes a share of the units, not of the parameters, as the paper prints it.")
    by_module, spent = cuts.by_module(levels), cuts.spent(levels)
    keep = {key: () if key in cuts.dropped else cuts.modules[key].kept(by_module[key]) for key in scores.modules}
    notes += _shortfall(cuts, levels, spent, recipe)
    unset = [key for key in cuts.modules if (key.kind if recipe.uniform else key) in cuts.free]
    highest = (cuts.modules[key].highest(by_module[key]) for key in unset if by_module[key])
    plan = PruningPlan(
        keep=keep,
        units={key: len(module.units) for key, module in scores.modules.items()},
        costs={key: module.cost for key, module in scores.modules.items()},
        parameters_before=scores.parameters,
        parameters_after=scores.parameters - spent,
        prunable_parameters=cuts.prunable,
        ratio_asked=recipe.ratio,
        ratio_reached=spent / cuts.prunable,
        threshold=max(highest, default=None),
        recipe=recipe,
        fingerprint=scores.fingerprint,
        notes=notes,
        beside=scores.beside,
    )
    besides = sum(module.remainder for key, module in scores.modules.items() if not keep[key])
    besides += sum(scores.beside[layer] or 0 for layer in plan.gone)
    return replace(plan, parameters_after=plan.parameters_after - besides)


def _whole(scores: ScoreTable, units: dict[ModuleKey, int], recipe: Recipe) -> PruningPlan:
    """The plan of a recipe that removes no units."""
    return PruningPlan(
        keep={key: tuple(range(count)) for key, count in units.items()},
        units=units,
        costs={key: module.cost for key, module in scores.modules.items()},
        parameters_before=scores.parameters,
        parameters_after=scores.parameters,
        prunable_parameters=scores.prunable_parameters,
        ratio_asked=recipe.ratio,
        ratio_reached=0.0,
        threshold=None,
        recipe=recipe,
        fingerprint=scores.fingerprint,
        notes=[
            "SliceGPT narrows the residual stream, to the parameters of this ratio, when it prunes; heads and channels"
            " stay, so this plan and its sizes show nothing of it."
        ],
    )


def _shared_ratios(cuts: dict[ModuleKey, ModuleCut], recipe: Recipe, notes: list[str]) -> dict[Kind, float]:
    """The ratios of a recipe that hold for the attention or the MLP of all layers."""
    shared: dict[Kind, float] = {}
    for kind in KINDS:
        given = {key: ratio for key, ratio in recipe.ratios.items() if key.kind == kind}
        if not given:
            continue
        low, high = min(given, key=given.__getitem__), max(given, key=given.__getitem__)
        if given[low] != given[high]:
            raise InputError(
                f"The recipe sets {low} to {given[low]:g} and {high} to {given[high]:g} but wants the same number of"
                " units in every layer; give them one ratio or drop uniform."
            )
        if len(given) < sum(key.kind == kind for key in cuts):
            notes.append(f"The ratio of {low}, {given[low]:g}, holds for every layer, since all keep the same counts.")
        shared[kind] = given[low]
    return shared


# The rules: from the share to remove and the parameters left to remove to the levels of the free groups.


def _global(cuts: Cuts, ratio: float, remaining: float) -> Levels:
    return cuts.steps.taken({key: cuts.start[key] for key in cuts.free}, remaining)


def _uniform(cuts: Cuts, ratio: float, remaining: float) -> Levels:
    free = cuts.free
    forced = sum(len(cut.forced) * cut.cost for cut in free.values())
    prunable = sum(cut.units * cut.cost for cut in free.values())
    if not prunable:
        return {}
    share = min(max((remaining + forced) / prunable, 0.0), 1.0)
    even = {key: cut.highest_below(share * cut.units) for key, cut in free.items()}
    # Whole units leave a rest; modules take one more step each, lowest score first, until it is used up.
    rest = remaining - sum((even[key] - cuts.start[key]) * cut.cost for key, cut in free.items())
    return Steps.of(free, even, lambda cut: cut.cost, 1).taken(even, rest)


def _paper_printed(cuts: Cuts, ratio: float, remaining: float) -> Levels:
    units = sum(cut.units for cut in cuts.free.values())
    forced = sum(len(cut.forced) for cut in cuts.free.values())
    return cuts.printed_steps.taken({key: cuts.start[key] for key in cuts.free}, ratio * units - forced)


_RULES: dict[str, Callable[[Cuts, float, float], Levels]] = {
    "global": _global,
    "uniform": _uniform,
    "paper_printed": _paper_printed,
    "none": lambda cuts, ratio, remaining: {},
}


def _shortfall(cuts: Cuts, levels: Levels, spent: int, recipe: Recipe) -> list[str]:
    """Why the plan missed the ratio by more than one step; empty when it did not."""
    budget = recipe.ratio * cuts.prunable
    step = max((cut.coarsest * cut.cost for cut in cuts.groups.values()), default=0)
    unit = max((cut.cost for cut in cuts.groups.values()), default=0)
    if abs(spent - budget) <= unit:
        return []
    asked, got = f"{recipe.ratio:.1%}", f"{spent / cuts.prunable:.1%}"
    if recipe.allocation == "paper_printed":
        return [f"Of the prunable parameters {got} go instead of {asked}."]
    if recipe.allocation == "none":
        return [f"What goes as a whole, or was set by hand, is {got} of the prunable parameters instead of {asked}."]
    if abs(spent - budget) <= step:
        return [f"Rounding kept counts to multiples reaches {got} of the prunable parameters instead of {asked}."]
    if spent > budget:
        return [f"Ratios and units set by hand already remove {got}, more than the {asked} asked for."]
    exhausted = all(levels[key] == cut.levels[-1] for key, cut in cuts.free.items())
    if exhausted and recipe.ratios and spent < budget:
        return [f"Ratios set by hand leave room for {got} only, less than the {asked} asked for."]
    if exhausted:
        return [f"Only {got} of the {asked} asked for can go: every module keeps its last or its forced units."]
    return [f"Modules cut by the same ratio reach {got} instead of {asked}, because units are whole."]
