"""A budget of time: heads, channels and whole modules that make decoding so many times as fast, for the least loss.

A unit saves the time that a module takes less without it, which is not in proportion to its parameters: at batch 1 a
module costs time that only goes with all of it. So both compete by what they save on the device that was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from numprune.allocation.cuts import ModuleCut
from numprune.allocation.depth import unlocked
from numprune.errors import InputError
from numprune.plan.keys import ModuleKey
from numprune.plan.latency import Latency
from numprune.plan.recipe import Recipe
from numprune.scoring.depth import DepthScores
from numprune.scoring.registry import MILLION, PRICED
from numprune.scoring.table import ScoreTable

HALVINGS = 60
"""Of the interval that the price of time lies in."""


@dataclass(frozen=True)
class Candidate:
    """One way to reach a speed-up.

    Attributes:
        recipe: with everything decided: what goes as a whole, and a ratio for every other module.
        loss: what it is predicted to add, in nats a token.
        seconds: a token is predicted to take.
    """

    recipe: Recipe
    loss: float
    seconds: float


def check_speedup(recipe: Recipe) -> None:
    """Raise InputError for a recipe whose speed-up cannot be chosen for."""
    if recipe.speedup is None or recipe.suggested:
        return
    if recipe.scorer not in PRICED or recipe.allocation != "global":
        raise InputError(
            f"A speed-up is chosen by prices in nats; use scorer {' or '.join(sorted(PRICED))} and allocation global."
        )
    if recipe.uniform:
        raise InputError("What a speed-up takes differs from layer to layer; leave uniform out.")
    if recipe.depth_scorer != "loss":
        raise InputError(f"A speed-up compares modules by the loss; use depth_scorer loss, not {recipe.depth_scorer}.")


def choose_speedup(scores: ScoreTable, depth: DepthScores | None, latency: Latency, recipe: Recipe) -> Recipe:
    """The recipe with what goes at its `speedup`: modules in `drop`, a ratio for every other one, and the share of the
    prunable parameters that all of it comes to.

    Modules that the recipe sets a ratio for, forces units of to stay or to go, or drops, stay as they are.

    Args:
        scores: prices (`PRICED`) of the recipe's scorer.
        depth: scores of modules or layers by the loss; None where none is to go as a whole.
        latency: of the same model on the device that is to be faster.

    Raises:
        InputError: the recipe asks for no speed-up, or one that the model does not reach; or one of the others is of
            another model.
    """
    return min(candidates(scores, depth, latency, recipe), key=lambda candidate: candidate.loss).recipe


def candidates(scores: ScoreTable, depth: DepthScores | None, latency: Latency, recipe: Recipe) -> list[Candidate]:
    """The ways to reach a speed-up, one for every number of modules that go as a whole; see `choose_speedup`."""
    if recipe.speedup is None:
        raise InputError("The recipe asks for no speed-up; set one such as 1.5.")
    check_speedup(recipe)
    sizes = {key: len(module.units) * module.cost for key, module in scores.modules.items()}
    recipe.check_for(scores.model, [scores.fingerprint], {key: len(each.units) for key, each in scores.modules.items()})
    if latency.modules != sizes:
        raise InputError(f"The decode times are of another model than {scores.model}; measure them for this one.")
    if depth is not None and (depth.fingerprint != scores.fingerprint or depth.loss is None):
        raise InputError(f"The depth scores are not the losses of {scores.model}; score it by loss.")
    steps = {0: ()} if depth is None else unlocked(depth, locked(recipe), sizes)
    found = [
        candidate(scores, latency, recipe, gone, 0.0 if depth is None else float(depth.loss[step]))
        for step, gone in steps.items()
    ]
    reached = [each for each in found if each.seconds <= latency.dense / recipe.speedup]
    if not reached:
        most = latency.dense / min(each.seconds for each in found)
        raise InputError(
            f"Decoding {recipe.speedup:g} times as fast was asked for and {scores.model} reaches {most:.2f} times on"
            f" {latency.device} at most; ask for less."
        )
    return reached


def locked(recipe: Recipe) -> set[ModuleKey]:
    """Modules that do not go as a whole, or that are gone by hand."""
    return {*recipe.ratios, *recipe.keep, *recipe.prune, *_by_hand(recipe)}


def _by_hand(recipe: Recipe) -> tuple[ModuleKey, ...]:
    return recipe.drop if recipe.depth == "none" else ()


def candidate(
    scores: ScoreTable, latency: Latency, recipe: Recipe, gone: tuple[ModuleKey, ...], before: float
) -> Candidate:
    """The heads and channels of least loss that go beside these modules; as fast as can be where the recipe's speed-up
    is not reached.

    Args:
        before: what the modules that go as a whole add to the loss, in nats a token.
    """
    width = _Width(scores, latency, recipe, (*gone, *_by_hand(recipe)))
    return width.candidate(width.chosen(latency.dense / (recipe.speedup or 1.0)), before)


class _Width:
    """The choices of heads and channels beside modules that go as a whole."""

    def __init__(self, scores: ScoreTable, latency: Latency, recipe: Recipe, gone: tuple[ModuleKey, ...]) -> None:
        self.scores, self.latency, self.recipe, self.gone = scores, latency, recipe, gone
        self.cuts = {
            key: ModuleCut.of(key, module, recipe) for key, module in scores.modules.items() if key not in gone
        }
        self.options = {key: self._options(key, cut) for key, cut in self.cuts.items()}
        """Of every module that is left: levels, nats lost and seconds taken at each."""

    def _options(self, key: ModuleKey, cut: ModuleCut) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        levels = cut.levels
        if key in self.recipe.ratios:
            levels = np.array([cut.nearest(self.recipe.ratios[key] * cut.units)])
        lost = np.array([cut.lost(level) for level in levels]) * cut.cost / MILLION
        left = (cut.units - levels - len(cut.forced)) * cut.cost
        return levels, lost, self.latency.of_module(key.kind, left)

    def fewest(self) -> dict[ModuleKey, int]:
        """The choices that take the least time."""
        return {key: int(taken.argmin()) for key, (_, _, taken) in self.options.items()}

    def _at(self, price: float) -> dict[ModuleKey, int]:
        """The choices of least loss where a second costs so many nats."""
        return {key: int((lost + price * taken).argmin()) for key, (_, lost, taken) in self.options.items()}

    def seconds(self, chosen: dict[ModuleKey, int]) -> float:
        """What a token takes."""
        whole = sum(self.latency.of_module(key.kind, self.latency.modules[key]) for key in self.latency.modules)
        return self.latency.dense - float(whole) + sum(float(self.options[key][2][at]) for key, at in chosen.items())

    def chosen(self, due: float) -> dict[ModuleKey, int]:
        """The choices of least loss that take no longer than this, or those that take the least time."""
        if self.seconds(self._at(0.0)) <= due:
            return self._at(0.0)
        if self.seconds(self.fewest()) > due:
            return self.fewest()
        low, high = 0.0, 1.0
        while self.seconds(self._at(high)) > due:
            low, high = high, high * 4
            if high > 1e30:
                return self.fewest()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.seconds(self._at(middle)) > due else (low, middle)
        return self._filled(self._at(high), due)

    def _filled(self, chosen: dict[ModuleKey, int], due: float) -> dict[ModuleKey, int]:
        """The choices with what fits into the time they leave: one price makes the best of convex parts only, and
        heads are few and a module's first unit is dear."""
        chosen = dict(chosen)
        while True:
            spare = due - self.seconds(chosen)
            best, most = None, 0.0
            for key, (_, lost, taken) in self.options.items():
                fits = np.where(taken <= taken[chosen[key]] + spare, lost, np.inf)
                at = int(fits.argmin())
                if lost[chosen[key]] - fits[at] > most:
                    best, most = (key, at), lost[chosen[key]] - fits[at]
            if best is None:
                return chosen
            chosen[best[0]] = best[1]

    def candidate(self, chosen: dict[ModuleKey, int], before: float) -> Candidate:
        ratios, removed = {}, 0
        for key, at in chosen.items():
            cut = self.cuts[key]
            total = cut.total(int(self.options[key][0][at]))
            ratios[key] = min(total / cut.units, 1 - 1e-9)
            removed += total * cut.cost
        removed += sum(len(self.scores.modules[key].units) * self.scores.modules[key].cost for key in self.gone)
        recipe = self.recipe.replace(
            ratio=min(removed / self.scores.prunable_parameters, 1 - 1e-9),
            ratios=ratios,
            suggested=True,
            drop=self.gone,
        )
        lost = before + sum(float(self.options[key][1][at]) for key, at in chosen.items())
        return Candidate(recipe, lost, self.seconds(chosen))
