"""From scores and a recipe to the units every module keeps (paper, section 3.3).

Modules are cut along levels: a module with n units can keep n, or any multiple of the rounding down to its
minimum. Going one level down removes its lowest-scored units. `global` sorts these steps of all modules by score
and takes them until the parameter budget is met; `uniform` cuts all modules by one ratio first. Where a recipe wants
the same counts in every layer, all layers are cut together as if they were one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from numprune.errors import InputError
from numprune.models.adapter import KINDS, Kind, ModuleKey
from numprune.recipe import Recipe
from numprune.scoring.table import ModuleScores, ScoreTable

SWAPS_AHEAD = "Swaps follow when the plan is carried out: as many units go, not all of them the ones shown here."


@dataclass(frozen=True)
class PruningPlan:
    """The units each module keeps, and the sizes that follow.

    Attributes:
        keep: ascending unit indices by module; all modules of the model are there.
        units: units of each module before pruning.
        costs: parameters per unit of each module.
        parameters_before, parameters_after: of the whole model, exact.
        prunable_parameters: before pruning.
        ratio_asked, ratio_reached: shares of the prunable parameters removed.
        threshold: the highest score that was removed by its rank; None when nothing was.
        notes: what kept the plan from the ratio asked for, in sentences.
        recipe: the recipe it was made from.
        fingerprint: of the model.
        refined: whether the recipe's swaps are done (`numprune.refine`).
    """

    keep: dict[ModuleKey, tuple[int, ...]]
    units: dict[ModuleKey, int]
    costs: dict[ModuleKey, int]
    parameters_before: int
    parameters_after: int
    prunable_parameters: int
    ratio_asked: float
    ratio_reached: float
    threshold: float | None
    recipe: Recipe
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    refined: bool = False

    def ratio(self, key: ModuleKey) -> float:
        """Share of a module's units that go."""
        return 1 - len(self.keep[key]) / self.units[key]

    def gone(self, key: ModuleKey) -> np.ndarray:
        """Whether each unit of a module goes, (units,) bool."""
        gone = np.ones(self.units[key], dtype=bool)
        gone[list(self.keep[key])] = False
        return gone

    def to_pandas(self) -> pd.DataFrame:
        """One row per module: layer, module, units, kept, ratio, parameters removed."""
        rows = [
            {
                "layer": key.layer,
                "module": key.kind,
                "units": self.units[key],
                "kept": len(kept),
                "ratio": self.ratio(key),
                "parameters_removed": (self.units[key] - len(kept)) * self.costs[key],
            }
            for key, kept in self.keep.items()
        ]
        return pd.DataFrame(rows)


@dataclass
class _Cut:
    """One module on its way from all units to the kept ones."""

    scores: ModuleScores
    order: np.ndarray  # units that may go, lowest score first
    forced: np.ndarray  # units that must go
    levels: np.ndarray  # numbers of units of `order` that may be removed: 0 first, ascending
    removed: int = 0  # units of `order` removed so far

    @property
    def cost(self) -> int:
        return self.scores.cost

    def total_removed(self) -> int:
        return self.removed + len(self.forced)

    def nearest(self, removed: float) -> int:
        """The level whose total (forced units included) is nearest to `removed` units."""
        return int(self.levels[np.abs(self.levels + len(self.forced) - removed).argmin()])

    def highest_below(self, removed: float) -> int:
        """The highest level whose total does not exceed `removed` units; the lowest when all do."""
        below = self.levels[self.levels + len(self.forced) <= removed + 1e-9]
        return int(below[-1]) if len(below) else 0

    def next_steps(self, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores (mean of the units that would go) and sizes in units of the steps from `removed` on."""
        levels = self.levels[self.levels >= self.removed][: None if most is None else most + 1]
        sizes = np.diff(levels)
        if not len(sizes):
            return np.empty(0), sizes
        values = self.scores.units[self.order[levels[0] : levels[-1]]]
        return np.add.reduceat(values, levels[:-1] - levels[0]) / sizes, sizes


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
        InputError: the recipe belongs to another model, names modules or units that do not exist, or wants the same
            counts in every layer and different ones at once.
    """
    units = {key: len(module.units) for key, module in scores.modules.items()}
    recipe.check_for(scores.model, scores.fingerprint, units)
    notes: list[str] = []
    if recipe.method != "units":
        return _whole(scores, units, recipe)
    cuts = {key: _cut(key, module, recipe) for key, module in scores.modules.items()}
    prunable = scores.prunable_parameters
    budget = recipe.ratio * prunable
    groups: dict[Any, _Cut] = cuts
    ratios: Mapping[Any, float] = recipe.ratios
    if recipe.uniform:
        groups, ratios = _joined(cuts, recipe), _shared_ratios(cuts, recipe, notes)
    for key, ratio in ratios.items():
        groups[key].removed = groups[key].nearest(ratio * len(groups[key].scores.units))
    free = {key: cut for key, cut in groups.items() if key not in ratios}
    _spread(groups, cuts)
    _RULES[recipe.allocation](free, budget - _spent(cuts), budget, recipe)
    _spread(groups, cuts)
    if recipe.uniform and "mlp" in free and recipe.allocation != "paper_printed":
        _make_up(free["mlp"], budget - _spent(cuts))
        _spread(groups, cuts)
    if recipe.allocation == "paper_printed":
        notes.append("paper_printed removes a share of the units, not of the parameters, as the paper prints it.")

    keep = {key: _kept(cut) for key, cut in cuts.items()}
    removed = _spent(cuts) + sum(cut.scores.remainder for key, cut in cuts.items() if not keep[key])
    notes += _shortfall(groups, free, _spent(cuts), prunable, recipe)
    if recipe.swaps:
        notes.append(SWAPS_AHEAD)
    loose = [cut for key, cut in cuts.items() if (key.kind if recipe.uniform else key) in free]
    return PruningPlan(
        keep=keep,
        units=units,
        costs={key: module.cost for key, module in scores.modules.items()},
        parameters_before=scores.parameters,
        parameters_after=scores.parameters - removed,
        prunable_parameters=prunable,
        ratio_asked=recipe.ratio,
        ratio_reached=_spent(cuts) / prunable,
        threshold=max((cut.scores.units[cut.order[cut.removed - 1]] for cut in loose if cut.removed), default=None),
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


def _cut(key: ModuleKey, module: ModuleScores, recipe: Recipe) -> _Cut:
    units = len(module.units)
    forced = np.array(recipe.prune.get(key, ()), dtype=np.int64)
    stay = np.array(recipe.keep.get(key, ()), dtype=np.int64)
    fewest = max(len(stay), 0 if recipe.allow_empty else 1)
    if units - len(forced) < fewest:
        raise InputError(f"The recipe prunes all {units} units of {key}; leave one or set allow_empty.")
    order = np.argsort(module.units, kind="stable")
    order = order[~np.isin(order, np.concatenate([forced, stay]))]
    return _Cut(module, order, forced, _levels(units - len(forced), fewest, recipe.round_to(key)))


def _levels(start: int, fewest: int, multiple: int) -> np.ndarray:
    """Numbers of units that may go of `start`, so that none or a multiple of at least `fewest` stays."""
    kept = np.arange(start // multiple * multiple, fewest - 1, -multiple)
    return np.concatenate([[0], start - kept[kept < start]]).astype(np.int64)


def _joined(cuts: dict[ModuleKey, _Cut], recipe: Recipe) -> dict[Kind, _Cut]:
    """One cut for the attention of all layers and one for their MLPs; its unit is the lowest left in each layer."""
    joined: dict[Kind, _Cut] = {}
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
        most = {key: len(cut.scores.units) - len(cut.forced) for key, cut in members.items()}
        busy, bound = max(least, key=least.__getitem__), min(most, key=most.__getitem__)
        fewest, start = least[busy], most[bound]
        if start < fewest:
            raise InputError(
                f"{busy} must keep {fewest} units and {bound} can keep {start} at most, but the recipe wants the same"
                " number in every layer; change what is forced or drop uniform."
            )
        ranks = [cut.scores.units[cut.order[most[key] - start : most[key] - fewest]] for key, cut in members.items()]
        units = max(len(cut.scores.units) for cut in members.values())
        scores = np.zeros(units)
        scores[: start - fewest] = np.mean(ranks, axis=0)
        width = next(iter(members.values())).scores.width
        together = ModuleScores(scores, np.zeros(units * width), sum(cut.cost for cut in members.values()))
        levels = _levels(start, fewest, recipe.round_to(busy))
        joined[kind] = _Cut(together, np.arange(start - fewest), np.arange(start, units), levels)
    return joined


def _shared_ratios(cuts: dict[ModuleKey, _Cut], recipe: Recipe, notes: list[str]) -> dict[Kind, float]:
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


def _spread(groups: dict[Any, _Cut], cuts: dict[ModuleKey, _Cut]) -> None:
    """Let every module keep what the cut it was joined into keeps."""
    for key, cut in cuts.items():
        group = groups.get(key.kind)
        if group is not None:
            kept = len(group.scores.units) - group.total_removed()
            cut.removed = len(cut.scores.units) - len(cut.forced) - kept


def _make_up(cut: _Cut, room: float) -> None:
    """Remove more or fewer units, so that `room` parameters that other cuts left or overdrew are used."""
    cut.removed = cut.nearest(cut.total_removed() + room / cut.cost)


def _spent(cuts: dict[ModuleKey, _Cut]) -> int:
    return sum(cut.total_removed() * cut.cost for cut in cuts.values())


def _kept(cut: _Cut) -> tuple[int, ...]:
    kept = np.ones(len(cut.scores.units), dtype=bool)
    kept[cut.forced] = False
    kept[cut.order[: cut.removed]] = False
    return tuple(np.flatnonzero(kept).tolist())


def _take_lowest(cuts: dict[ModuleKey, _Cut], room: float, most: int | None, weigh: Callable[[_Cut], float]) -> None:
    """Take steps of all modules in ascending order of score while the sum of their weights stays nearest to `room`."""
    keys = list(cuts)
    steps = [cuts[key].next_steps(most) for key in keys]
    scores = np.concatenate([step[0] for step in steps]) if steps else np.empty(0)
    sizes = np.concatenate([step[1] for step in steps]) if steps else np.empty(0, dtype=np.int64)
    owner = np.repeat(np.arange(len(keys)), [len(step[0]) for step in steps])
    weights = sizes * np.array([weigh(cuts[key]) for key in keys])[owner]
    # Stable, so that equal scores of one module keep its order.
    order = np.argsort(scores, kind="stable")
    sums = np.cumsum(weights[order])
    count = int(np.searchsorted(sums, room + 1e-6, side="right"))
    if count < len(order):
        before = sums[count - 1] if count else 0.0
        count += bool(sums[count] - room < room - before)
    taken = order[:count]
    for index, size in enumerate(np.bincount(owner[taken], weights=sizes[taken], minlength=len(keys))):
        cuts[keys[index]].removed += int(size)


def _global(cuts: dict[ModuleKey, _Cut], room: float, budget: float, recipe: Recipe) -> None:
    _take_lowest(cuts, room, None, lambda cut: cut.cost)


def _uniform(cuts: dict[ModuleKey, _Cut], room: float, budget: float, recipe: Recipe) -> None:
    forced = sum(len(cut.forced) * cut.cost for cut in cuts.values())
    prunable = sum(len(cut.scores.units) * cut.cost for cut in cuts.values())
    if not prunable:
        return
    ratio = min(max((room + forced) / prunable, 0.0), 1.0)
    before = _spent(cuts)
    for cut in cuts.values():
        cut.removed = cut.highest_below(ratio * len(cut.scores.units))
    # Whole units leave a rest; modules take one more step each, lowest score first, until it is used up.
    _take_lowest(cuts, room - (_spent(cuts) - before), 1, lambda cut: cut.cost)


def _paper_printed(cuts: dict[ModuleKey, _Cut], room: float, budget: float, recipe: Recipe) -> None:
    units = sum(len(cut.scores.units) for cut in cuts.values())
    forced = sum(len(cut.forced) for cut in cuts.values())
    scaled = {key: _scaled(cut) for key, cut in cuts.items()}
    _take_lowest(scaled, recipe.ratio * units - forced, None, lambda cut: 1.0)
    for key, cut in cuts.items():
        cut.removed = scaled[key].removed


def _scaled(cut: _Cut) -> _Cut:
    """The module with head scores multiplied by alpha = 4 D_h / 3; D_h is the input channels of one unit."""
    alpha = 4 * cut.scores.width / 3 if cut.scores.width > 1 else 1.0
    scores = ModuleScores(cut.scores.units * alpha, cut.scores.channels, cut.cost, cut.scores.remainder)
    return _Cut(scores, cut.order, cut.forced, cut.levels, cut.removed)


_RULES: dict[str, Callable[[dict[ModuleKey, _Cut], float, float, Recipe], None]] = {
    "global": _global,
    "uniform": _uniform,
    "paper_printed": _paper_printed,
}


def _shortfall(cuts: dict[Any, _Cut], free: dict[Any, _Cut], spent: int, prunable: int, recipe: Recipe) -> list[str]:
    """Why the plan missed the ratio by more than one step; empty when it did not."""
    budget = recipe.ratio * prunable
    step = max(
        (int(np.diff(cut.levels).max()) * cut.cost if len(cut.levels) > 1 else cut.cost for cut in cuts.values()),
        default=0,
    )
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
    exhausted = all(cut.removed == cut.levels[-1] for cut in free.values())
    if exhausted and recipe.ratios and spent < budget:
        return [f"Ratios set by hand leave room for {got} only, less than the {asked} asked for."]
    if exhausted:
        return [f"Only {got} of the {asked} asked for can go: every module keeps its last or its forced units."]
    return [f"Modules cut by the same ratio reach {got} instead of {asked}, because units are whole."]
