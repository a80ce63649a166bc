"""The ways a module can lose units, and the steps of all modules in the order of their scores.

Modules are cut along levels: a module with n units can keep n, or any multiple of the rounding down to its minimum.
Going one level down removes its lowest-scored units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from numprune.errors import InputError
from numprune.plan.keys import KINDS, Kind, ModuleKey
from numprune.plan.recipe import Recipe
from numprune.scoring.table import ModuleScores, Ranking

Levels = dict[Any, int]
"""The level every module, or every group of modules, is cut to."""


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
        order = module.order
        if len(forced) or len(stay):
            order = order[~np.isin(order, np.concatenate([forced, stay]))]
        return cls(module, order, forced, _levels(units - len(forced), fewest, recipe.round_to(key)))

    @property
    def cost(self) -> int:
        """Parameters of one unit."""
        return self.scores.cost

    @property
    def units(self) -> int:
        return len(self.scores.units)

    @cached_property
    def coarsest(self) -> int:
        """Units of the largest step."""
        return int(np.diff(self.levels).max()) if len(self.levels) > 1 else 1

    @cached_property
    def _lost(self) -> np.ndarray:
        values = self.scores.units
        return np.concatenate([[0.0], np.cumsum(values[self.order])]) + values[self.forced].sum()

    def lost(self, level: int) -> float:
        """The sum of the scores of all units that are gone at a level, forced ones included."""
        return float(self._lost[level])

    def total(self, level: int) -> int:
        """Units removed at a level, forced ones included."""
        return level + len(self.forced)

    def nearest(self, total: float) -> int:
        """The level whose total is nearest to this many units."""
        return int(self.levels[np.abs(self.levels + len(self.forced) - total).argmin()])

    def highest_below(self, total: float) -> int:
        """The highest level whose total does not exceed this many units; the lowest when all do."""
        below = np.searchsorted(self.levels, total + 1e-9 - len(self.forced), side="right")
        return int(self.levels[below - 1]) if below else 0

    def steps_from(self, level: int, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores (mean of the units that would go) and sizes in units of the steps down from a level."""
        begin = int(np.searchsorted(self.levels, level))
        levels = self.levels[begin : None if most is None else begin + most + 1]
        sizes = np.diff(levels)
        if not len(sizes):
            return np.empty(0), sizes
        values = self.scores.units[self.order[levels[0] : levels[-1]]]
        return np.add.reduceat(values, levels[:-1] - levels[0]) / sizes, sizes

    def highest(self, level: int) -> float:
        """The highest score that is gone by its rank at a level above 0."""
        return self.scores.units[self.order[level - 1]]

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

    def scaled(self) -> ModuleCut:
        """The module with head scores multiplied by alpha = 4 D_h / 3; D_h is the input channels of one unit."""
        alpha = 4 * self.scores.width / 3 if self.scores.width > 1 else 1.0
        scores = ModuleScores(self.scores.units * alpha, self.scores.channels, self.cost, self.scores.remainder)
        return ModuleCut(scores, self.order, self.forced, self.levels)


@dataclass(frozen=True)
class Steps:
    """The steps of several modules in ascending order of score.

    Attributes:
        keys: the modules.
        owner: the place in `keys` of each step's module, (steps,).
        order: where each step stands in `scores` and `sizes`, (steps,).
        scores: of the steps, module after module, and perhaps others that `order` leaves out.
        sizes: units of each, the same shape; None where every step is one unit.
        sums: weights of each step and all before it, (steps,).
    """

    keys: list[Any]
    owner: np.ndarray
    order: np.ndarray
    scores: np.ndarray
    sizes: np.ndarray | None
    sums: np.ndarray

    @classmethod
    def of(
        cls, cuts: Mapping[Any, ModuleCut], levels: Levels, weigh: Callable[[ModuleCut], float], most: int | None = None
    ) -> Steps:
        """The steps down from these levels, at most `most` of each module; `weigh` gives the weight of one unit."""
        keys = list(cuts)
        steps = [cuts[key].steps_from(levels[key], most) for key in keys]
        scores = np.concatenate([step[0] for step in steps]) if steps else np.empty(0)
        sizes = np.concatenate([step[1] for step in steps]) if steps else np.empty(0, dtype=np.int64)
        # Stable, so that equal scores of one module keep its order.
        order = np.argsort(scores, kind="stable")
        owner = np.repeat(np.arange(len(keys)), [len(step[0]) for step in steps])[order]
        weights = sizes[order] * np.array([weigh(cuts[key]) for key in keys])[owner]
        return cls(keys, owner, order, scores, sizes, np.cumsum(weights))

    @classmethod
    def of_units(cls, ranking: Ranking, cuts: Mapping[ModuleKey, ModuleCut]) -> Steps:
        """The same for modules that are cut unit by unit from their first level, each weighing its cost.

        Nothing is sorted: what may go is picked out of the order that the score table keeps.
        """
        may_go = np.zeros(len(ranking.units), dtype=bool)
        for key, cut in cuts.items():
            may_go[ranking.starts[key] + cut.order[: cut.levels[-1]]] = True
        picked = may_go[ranking.order]
        owner = ranking.owner[picked]
        costs = np.array([cuts[key].cost if key in cuts else 0 for key in ranking.starts], dtype=np.int64)
        return cls(list(ranking.starts), owner, ranking.order[picked], ranking.units, None, np.cumsum(costs[owner]))

    def count(self, weight: np.ndarray | float) -> np.ndarray:
        """How many steps weigh nearest to this together; one for each weight."""
        weight = np.asarray(weight, dtype=np.float64)
        if not len(self.sums):
            return np.zeros(weight.shape, dtype=np.int64)
        below = np.searchsorted(self.sums, weight + 1e-6, side="right")
        before = np.where(below > 0, self.sums[np.maximum(below - 1, 0)], 0)
        after = np.where(below < len(self.sums), self.sums[np.minimum(below, len(self.sums) - 1)], np.inf)
        return below + (after - weight < weight - before)

    def taken(self, levels: Levels, weight: float) -> Levels:
        """The levels that modules which began at `levels` come to when steps of this weight are taken."""
        count = int(self.count(weight))
        owner = self.owner[:count]
        sizes = None if self.sizes is None else self.sizes[self.order[:count]]
        added = np.bincount(owner, weights=sizes, minlength=len(self.keys))
        by_key = dict(zip(self.keys, added.tolist(), strict=True))
        return {key: level + int(by_key[key]) for key, level in levels.items()}

    @cached_property
    def _worth(self) -> np.ndarray:
        """The sum of score times weight over the first so many steps, (steps + 1,)."""
        weights = np.diff(self.sums, prepend=0)
        return np.concatenate([[0.0], np.cumsum(self.scores[self.order] * weights)])

    def outcomes(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The weight of the steps taken, and the sum of score times weight over them, for each weight asked for."""
        count = self.count(weight)
        reached = np.where(count > 0, self.sums[np.maximum(count - 1, 0)], 0) if len(self.sums) else count
        return reached, self._worth[count]


def joined(cuts: dict[ModuleKey, ModuleCut], recipe: Recipe) -> dict[Kind, ModuleCut]:
    """One cut for the attention of all layers and one for their MLPs; its unit is the lowest left in each layer.

    Raises:
        InputError: a layer lacks one of the modules, or what is forced leaves no common number of units.
    """
    together: dict[Kind, ModuleCut] = {}
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
        module = ModuleScores(scores, np.zeros(units * width), sum(cut.cost for cut in members.values()))
        levels = _levels(start, fewest, recipe.round_to(busy))
        together[kind] = ModuleCut(module, np.arange(start - fewest), np.arange(start, units), levels)
    return together


def _levels(start: int, fewest: int, multiple: int) -> np.ndarray:
    """Numbers of units that may go of `start`, so that none or a multiple of at least `fewest` stays."""
    kept = np.arange(start // multiple * multiple, fewest - 1, -multiple)
    return np.concatenate([[0], start - kept[kept < start]]).astype(np.int64)
