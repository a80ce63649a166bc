"""From scores and a recipe to the units every module keeps (paper, section 3.3).

Modules are cut along levels: a module with n units can keep n, or any multiple of the rounding down to its
minimum. Going one level down removes its lowest-scored units. `global` sorts these steps of all modules by score
and takes them until the parameter budget is met; `uniform` cuts all modules by one ratio first. Where a recipe wants
the same counts in every layer, all layers are cut together as if they were one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from numprune.errors import InputError
from numprune.plan.keys import KINDS, Kind, ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import Recipe
from numprune.scoring.table import ModuleScores, ScoreTable

SCORED_FOR = 0.5
"""The ratio that scores of a recipe are computed for, see `numprune.score`."""


@dataclass(frozen=True)
class ModuleCut:
    """The ways a module can lose units: its levels, and which units go on the way down.

    Attributes:
        scores: of the module.
        order: units that may go, lowest score first.
        forced: units that must go.
        levels: numbers of units of `order` that may be removed: 0 first, ascending.
    """

    scores: ModuleScores
    order: np.ndarray
    forced: np.ndarray
    levels: np.ndarray

    @classmethod
    def of(cls, key: ModuleKey, module: ModuleScores, recipe: Recipe) -> ModuleCut:
        """What a recipe's locks and rounding leave of a module's choices.

        Raises:
            InputError: the recipe forces all units to go.
        """
        units = len(module.units)
        forced = np.array(recipe.prune.get(key, ()), dtype=np.int64)
        stay = np.array(recipe.keep.get(key, ()), dtype=np.int64)
        fewest = max(len(stay), 0 if recipe.allow_empty else 1)
        if units - len(forced) < fewest:
            raise InputError(f"The recipe prunes all {units} units of {key}; leave one or set allow_empty.")
        order = np.argsort(module.units, kind="stable")
        order = order[~np.isin(order, np.concatenate([forced, stay]))]
        return cls(module, order, forced, _levels(units - len(forced), fewest, recipe.round_to(key)))

    @property
    def cost(self) -> int:
        """Parameters of one unit."""
        return self.scores.cost

    @property
    def units(self) -> int:
        return len(self.scores.units)

    @property
    def coarsest(self) -> int:
        """Units of the largest step."""
        return int(np.diff(self.levels).max()) if len(self.levels) > 1 else 1

    def total(self, level: int) -> int:
        """Units removed at a level, forced ones included."""
        return level + len(self.forced)

    def nearest(self, total: float) -> int:
        """The level whose total is nearest to this many units."""
        return int(self.levels[np.abs(self.levels + len(self.forced) - total).argmin()])

    def highest_below(self, total: float) -> int:
        """The highest level whose total does not exceed this many units; the lowest when all do."""
        below = self.levels[self.levels + len(self.forced) <= total + 1e-9]
        return int(below[-1]) if len(below) else 0

    def steps_from(self, level: int, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores (mean of the units that would go) and sizes in units of the steps down from a level."""
        levels = self.levels[self.levels >= level][: None if most is None else most + 1]
        sizes = np.diff(levels)
        if not len(sizes):
            return np.empty(0), sizes
        values = self.scores.units[self.order[levels[0] : levels[-1]]]
        return np.add.reduceat(values, levels[:-1] - levels[0]) / sizes, sizes

    def kept(self, level: int) -> tuple[int, ...]:
        """The units that stay at a level, ascending."""
        kept = np.ones(self.units, dtype=bool)
        kept[self.forced] = False
        kept[self.order[:level]] = False
        return tuple(np.flatnonzero(kept).tolist())

    def kept_by_ratio(self, ratio: float) -> tuple[int, ...]:
        """The units that stay when as near as possible to a share of all units goes; 1 means all that may."""
        # The last unit of an even split must not decide: just below 1 every unit goes that may.
        return self.kept(self.nearest(min(max(ratio, 0.0), 1 - 1e-9) * self.units))


Levels = dict[Any, int]
"""The level every module, or every group of modules, is cut to."""


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

    Raises:
        InputError: the scores are another scorer's than the recipe's, the recipe belongs to another model, names
            modules or units that do not exist, or wants the same counts in every layer and different ones at once.
    """
    units = {key: len(module.units) for key, module in scores.modules.items()}
    recipe.check_for(scores.model, [scores.fingerprint], units)
    notes: list[str] = []
    if recipe.removal != "units":
        return _whole(scores, units, recipe)
    if scores.scorer != recipe.scorer:
        raise InputError(
            f"The recipe goes by scorer {recipe.scorer} and these scores are of {scores.scorer}; score the model by"
            f" {recipe.scorer}, or change the recipe's scorer."
        )
    if scores.ratio != SCORED_FOR:
        notes.append(
            f"The scores are for a ratio of {scores.ratio:g}; the recipe alone, carried out again, scores for"
            f" {SCORED_FOR:g}."
        )
    cuts = {key: ModuleCut.of(key, module, recipe) for key, module in scores.modules.items()}
    prunable = scores.prunable_parameters
    budget = recipe.ratio * prunable
    groups: dict[Any, ModuleCut] = cuts
    ratios: Mapping[Any, float] = recipe.ratios
    if recipe.uniform:
        groups, ratios = _joined(cuts, recipe), _shared_ratios(cuts, recipe, notes)
    levels: Levels = dict.fromkeys(groups, 0)
    levels |= {key: groups[key].nearest(ratio * groups[key].units) for key, ratio in ratios.items()}
    notes += [
        f"{key} loses {groups[key].total(levels[key])} of {groups[key].units} units instead of the {ratio:.1%} of its"
        " ratio: units forced to stay or to go, and the last one, leave no more."
        for key, ratio in ratios.items()
        if abs(groups[key].total(levels[key]) - ratio * groups[key].units) > groups[key].coarsest
    ]
    free = {key: cut for key, cut in groups.items() if key not in ratios}

    def spent() -> int:
        return _spent(cuts, _by_module(cuts, groups, levels))

    levels |= _RULES[recipe.allocation](free, {key: levels[key] for key in free}, budget - spent(), recipe)
    if recipe.uniform and "mlp" in free and recipe.allocation != "paper_printed":
        # What whole steps of heads left or overdrew is made up in channels.
        channels = free["mlp"]
        levels["mlp"] = channels.nearest(channels.total(levels["mlp"]) + (budget - spent()) / channels.cost)
    if recipe.allocation == "paper_printed":
        notes.append("paper_printed removes a share of the units, not of the parameters, as the paper prints it.")

    by_module = _by_module(cuts, groups, levels)
    keep = {key: cut.kept(by_module[key]) for key, cut in cuts.items()}
    removed = spent() + sum(cut.scores.remainder for key, cut in cuts.items() if not keep[key])
    notes += _shortfall(groups, free, levels, spent(), prunable, recipe)
    unset = [key for key in cuts if (key.kind if recipe.uniform else key) in free]
    highest = (cuts[key].scores.units[cuts[key].order[by_module[key] - 1]] for key in unset if by_module[key])
    return PruningPlan(
        keep=keep,
        units=units,
        costs={key: module.cost for key, module in scores.modules.items()},
        parameters_before=scores.parameters,
        parameters_after=scores.parameters - removed,
        prunable_parameters=prunable,
        ratio_asked=recipe.ratio,
        ratio_reached=spent() / prunable,
        threshold=max(highest, default=None),
        recipe=recipe,
        fingerprint=scores.fingerprint,
        notes=notes,
    )


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


def _levels(start: int, fewest: int, multiple: int) -> np.ndarray:
    """Numbers of units that may go of `start`, so that none or a multiple of at least `fewest` stays."""
    kept = np.arange(start // multiple * multiple, fewest - 1, -multiple)
    return np.concatenate([[0], start - kept[kept < start]]).astype(np.int64)


def _joined(cuts: dict[ModuleKey, ModuleCut], recipe: Recipe) -> dict[Kind, ModuleCut]:
    """One cut for the attention of all layers and one for their MLPs; its unit is the lowest left in each layer."""
    joined: dict[Kind, ModuleCut] = {}
    layers = {key.layer for key in cuts}
    for kind in KINDS:
        members = {key: cut for key, cut in cuts.items() if key.kind == kind}
        if not members:
            continue
        if len(members) < len(layers):
            bare = min(layers - {key.layer for key in members})
            raise InputError(
                f"Layer {bare} has no {kind} left, so no number of units is the same in every layer; drop uniform."
            )
        least = {key: max(len(recipe.keep.get(key, ())), 0 if recipe.allow_empty else 1) for key in members}
        most = {key: cut.units - len(cut.forced) for key, cut in members.items()}
        busy, bound = max(least, key=least.__getitem__), min(most, key=most.__getitem__)
        fewest, start = least[busy], most[bound]
        if start < fewest:
            raise InputError(
                f"{busy} must keep {fewest} units and {bound} can keep {start} at most, but the recipe wants the same"
                " number in every layer; change what is forced or drop uniform."
            )
        ranks = [cut.scores.units[cut.order[most[key] - start : most[key] - fewest]] for key, cut in members.items()]
        units = max(cut.units for cut in members.values())
        scores = np.zeros(units)
        scores[: start - fewest] = np.mean(ranks, axis=0)
        width = next(iter(members.values())).scores.width
        together = ModuleScores(scores, np.zeros(units * width), sum(cut.cost for cut in members.values()))
        levels = _levels(start, fewest, recipe.round_to(busy))
        joined[kind] = ModuleCut(together, np.arange(start - fewest), np.arange(start, units), levels)
    return joined


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


def _by_module(cuts: dict[ModuleKey, ModuleCut], groups: dict[Any, ModuleCut], levels: Levels) -> Levels:
    """The level of every module, whose group keeps as many units as it does."""
    if groups is cuts:
        return levels
    kept = {kind: group.units - group.total(levels[kind]) for kind, group in groups.items()}
    return {key: cut.units - len(cut.forced) - kept[key.kind] for key, cut in cuts.items()}


def _spent(cuts: dict[Any, ModuleCut], levels: Levels) -> int:
    """Parameters removed at these levels."""
    return sum(cut.total(levels[key]) * cut.cost for key, cut in cuts.items())


def _take_lowest(
    cuts: dict[Any, ModuleCut], levels: Levels, remaining: float, weigh: Callable[[ModuleCut], float], most: int | None
) -> Levels:
    """Take steps of all modules, at most `most` of each, in ascending order of score until the sum of their weights is
    nearest to `remaining`."""
    keys = list(cuts)
    steps = [cuts[key].steps_from(levels[key], most) for key in keys]
    scores = np.concatenate([step[0] for step in steps]) if steps else np.empty(0)
    sizes = np.concatenate([step[1] for step in steps]) if steps else np.empty(0, dtype=np.int64)
    owner = np.repeat(np.arange(len(keys)), [len(step[0]) for step in steps])
    weights = sizes * np.array([weigh(cuts[key]) for key in keys])[owner]
    # Stable, so that equal scores of one module keep its order.
    order = np.argsort(scores, kind="stable")
    sums = np.cumsum(weights[order])
    count = int(np.searchsorted(sums, remaining + 1e-6, side="right"))
    if count < len(order):
        before = sums[count - 1] if count else 0.0
        count += bool(sums[count] - remaining < remaining - before)
    taken = order[:count]
    added = np.bincount(owner[taken], weights=sizes[taken], minlength=len(keys))
    return {key: levels[key] + int(size) for key, size in zip(keys, added, strict=True)}


# The rules: from the modules that are free, the levels they begin at and the parameters left to remove to new levels.


def _global(cuts: dict[Any, ModuleCut], levels: Levels, remaining: float, recipe: Recipe) -> Levels:
    return _take_lowest(cuts, levels, remaining, lambda cut: cut.cost, None)


def _uniform(cuts: dict[Any, ModuleCut], levels: Levels, remaining: float, recipe: Recipe) -> Levels:
    forced = sum(len(cut.forced) * cut.cost for cut in cuts.values())
    prunable = sum(cut.units * cut.cost for cut in cuts.values())
    if not prunable:
        return levels
    ratio = min(max((remaining + forced) / prunable, 0.0), 1.0)
    even = {key: cut.highest_below(ratio * cut.units) for key, cut in cuts.items()}
    # Whole units leave a rest; modules take one more step each, lowest score first, until it is used up.
    return _take_lowest(cuts, even, remaining - (_spent(cuts, even) - _spent(cuts, levels)), lambda cut: cut.cost, 1)


def _paper_printed(cuts: dict[Any, ModuleCut], levels: Levels, remaining: float, recipe: Recipe) -> Levels:
    units = sum(cut.units for cut in cuts.values())
    forced = sum(len(cut.forced) for cut in cuts.values())
    scaled = {key: _scaled(cut) for key, cut in cuts.items()}
    return _take_lowest(scaled, levels, recipe.ratio * units - forced, lambda cut: 1.0, None)


def _scaled(cut: ModuleCut) -> ModuleCut:
    """The module with head scores multiplied by alpha = 4 D_h / 3; D_h is the input channels of one unit."""
    alpha = 4 * cut.scores.width / 3 if cut.scores.width > 1 else 1.0
    scores = ModuleScores(cut.scores.units * alpha, cut.scores.channels, cut.cost, cut.scores.remainder)
    return ModuleCut(scores, cut.order, cut.forced, cut.levels)


_RULES: dict[str, Callable[[dict[Any, ModuleCut], Levels, float, Recipe], Levels]] = {
    "global": _global,
    "uniform": _uniform,
    "paper_printed": _paper_printed,
}


def _shortfall(
    cuts: dict[Any, ModuleCut], free: dict[Any, ModuleCut], levels: Levels, spent: int, prunable: int, recipe: Recipe
) -> list[str]:
    """Why the plan missed the ratio by more than one step; empty when it did not."""
    budget = recipe.ratio * prunable
    step = max((cut.coarsest * cut.cost for cut in cuts.values()), default=0)
    unit = max((cut.cost for cut in cuts.values()), default=0)
    if abs(spent - budget) <= unit:
        return []
    asked, got = f"{recipe.ratio:.1%}", f"{spent / prunable:.1%}"
    if recipe.allocation == "paper_printed":
        return [f"Of the prunable parameters {got} go instead of {asked}."]
    if abs(spent - budget) <= step:
        return [f"Rounding kept counts to multiples reaches {got} of the prunable parameters instead of {asked}."]
    if spent > budget:
        return [f"Ratios and units set by hand already remove {got}, more than the {asked} asked for."]
    exhausted = all(levels[key] == cut.levels[-1] for key, cut in free.items())
    if exhausted and recipe.ratios and spent < budget:
        return [f"Ratios set by hand leave room for {got} only, less than the {asked} asked for."]
    if exhausted:
        return [f"Only {got} of the {asked} asked for can go: every module keeps its last or its forced units."]
    return [f"Modules cut by the same ratio reach {got} instead of {asked}, because units are whole."]
