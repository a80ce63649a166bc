"""A budget of time: heads, channels and whole modules that make decoding so many times as fast, for the least loss.

A unit saves the time that a module takes less without it, which is not in proportion to its parameters: at batch 1 a
module costs time that only goes with all of it. So both compete by what they save on the device that was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from numprune.allocation.cuts import ModuleCut
from numprune.allocation.depth import unlocked
from numprune.allocation.threshold import allocate
from numprune.allocation.trial import Trial
from numprune.errors import InputError, Progress
from numprune.plan.keys import ModuleKey
from numprune.plan.latency import Latency
from numprune.plan.recipe import Recipe
from numprune.ranks import joined
from numprune.scoring.depth import DepthScores
from numprune.scoring.registry import MILLION, PRICED
from numprune.scoring.table import ScoreTable

TRIALS = 5
"""Plans that are measured at most."""
LEAST_SCALE = 0.1
"""Of prices and losses: trials that found less say nothing of other plans."""
TELLING = 0.05
"""What whole modules cost, in shares of the prices, from which on a trial tells their scale."""
HALVINGS = 60
"""Of the interval that the price of time lies in."""


@dataclass(frozen=True)
class Candidate:
    """One way to reach a speed-up.

    Attributes:
        recipe: with everything decided: what goes as a whole, and a ratio for every other module.
        whole: what the modules that go as a whole add to the loss, in nats a token.
        units: what the prices of the other units that go add up to, in nats a token.
        seconds: a token is predicted to take.
    """

    recipe: Recipe
    whole: float
    units: float
    seconds: float

    def scaled(self, units: float = 1.0, whole: float = 1.0) -> float:
        """What it is predicted to add to the loss when units cost so many times their prices, and modules that go as a
        whole so many times their loss."""
        return units * self.units + whole * self.whole


def check_speedup(recipe: Recipe) -> None:
    """Raise InputError for a recipe whose speed-up cannot be chosen for."""
    if recipe.speedup is None or recipe.suggested:
        return
    if not joined().alone:
        raise InputError("Decode times are measured by one process on a machine left to it; start it without torchrun.")
    if recipe.scorer not in PRICED or recipe.allocation != "global":
        raise InputError(
            f"A speed-up is chosen by prices in nats; use scorer {' or '.join(sorted(PRICED))} and allocation global."
        )
    if recipe.uniform:
        raise InputError("What a speed-up takes differs from layer to layer; leave uniform out.")
    if recipe.depth_scorer != "loss":
        raise InputError(f"A speed-up compares modules by the loss; use depth_scorer loss, not {recipe.depth_scorer}.")


def choose_speedup(
    scores: ScoreTable,
    depth: DepthScores | None,
    latency: Latency,
    recipe: Recipe,
    *,
    trial: Trial | None = None,
    progress: Progress | None = None,
) -> Recipe:
    """The recipe with what goes at its `speedup`: modules in `drop`, a ratio for every other one, and the share of the
    prunable parameters that all of it comes to.

    Modules that the recipe sets a ratio for, forces units of to stay or to go, or drops, stay as they are.

    Prices of units hold for each module alone and add up to too little where much goes, and the fit makes up for part
    of the loss of whole modules. So plans are measured where there is a `trial`: the one with the fewest whole modules
    first, then the one of least predicted loss when prices and losses are scaled to what the trials so far have found;
    the best that was measured is taken.

    Args:
        scores: prices (`PRICED`) of the recipe's scorer.
        depth: scores of modules or layers by the loss; None where none is to go as a whole.
        latency: of the same model on the device that is to be faster.
        trial: measures plans; None goes by what is predicted.

    Raises:
        InputError: the recipe asks for no speed-up, or one that the model does not reach; or one of the others is of
            another model.
    """
    found = candidates(scores, depth, latency, recipe)
    if trial is None:
        return min(found, key=Candidate.scaled).recipe
    measured: dict[int, float] = {}
    best = 0
    while best not in measured and len(measured) < TRIALS:
        if progress is not None:
            progress(len(measured), TRIALS, "measuring plans of that speed")
        measured[best] = _measured(trial, scores, found[best])
        scales = _scales([(found[at], loss) for at, loss in measured.items() if math.isfinite(loss)])
        hopeful = [at for at in range(len(found)) if math.isfinite(measured.get(at, 0.0))] or [best]
        best = min(hopeful, key=lambda at: found[at].scaled(*scales))
    return found[min(measured, key=measured.__getitem__)].recipe


def price_scale(trial: Trial, scores: ScoreTable, latency: Latency, recipe: Recipe) -> float:
    """How many times what their prices add up to units cost that alone make the model as fast as a recipe asks for."""
    units = candidate(scores, latency, recipe, (), 0.0)
    loss = _measured(trial, scores, units)
    return _scales([(units, loss)] if math.isfinite(loss) else [])[0]


def _measured(trial: Trial, scores: ScoreTable, which: Candidate) -> float:
    return trial.loss(allocate(scores, which.recipe).keep) - trial.dense_loss()


def _scales(measured: list[tuple[Candidate, float]]) -> tuple[float, float]:
    """What prices of units, and losses of whole modules, are to be multiplied by to come nearest to what was measured;
    losses that nothing tells of by 1, or by less where units cost less than their prices."""
    units, whole = (np.array([getattr(each, name) for each, _ in measured]) for name in ("units", "whole"))
    losses = np.array([loss for _, loss in measured])
    if not (units > 0).any():
        return 1.0, 1.0
    if not (np.abs(whole) > TELLING * units).any():
        scale = max(float(losses @ units / (units @ units)), LEAST_SCALE)
        return scale, min(scale, 1.0)
    if len(measured) < 2:
        return max(float((losses[0] - whole[0]) / units[0]), LEAST_SCALE), 1.0
    both, *_ = np.linalg.lstsq(np.stack([units, whole], axis=1), losses, rcond=None)
    return max(float(both[0]), LEAST_SCALE), max(float(both[1]), LEAST_SCALE)


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
    return {*recipe.ratios, *recipe.keep, *recipe.prune, *by_hand(recipe)}


def by_hand(recipe: Recipe) -> tuple[ModuleKey, ...]:
    """Modules that the recipe names to go as a whole."""
    return recipe.drop if recipe.depth == "none" else ()


def candidate(
    scores: ScoreTable, latency: Latency, recipe: Recipe, gone: tuple[ModuleKey, ...], before: float
) -> Candidate:
    """The heads and channels of least loss that go beside these modules; as fast as can be where the recipe's speed-up
    is not reached.

    Args:
        before: what the modules that go as a whole add to the loss, in nats a token.
    """
    width = _Width(scores, latency, recipe, (*gone, *by_hand(recipe)))
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
        lost = sum(float(self.options[key][1][at]) for key, at in chosen.items())
        return Candidate(recipe, before, lost, self.seconds(chosen))
