"""The loss a plan is predicted to add, and how it grows with the ratio, for scores that are prices.

A price says what the removal of a unit adds to the loss, in nats a token for a million parameters, when the units of a
module go in turn from the cheapest up (`numprune.scoring.fisher`). To second order, and with modules taken as
independent of each other, what a plan adds is the sum of price times parameters over the units that go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from numprune.allocation.threshold import cuts_of
from numprune.errors import InputError
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import Recipe, check_ratio
from numprune.scoring.registry import MILLION, PRICED
from numprune.scoring.table import ScoreTable

GRID = tuple(np.linspace(0, 0.9, 91).round(2).tolist())
"""The ratios a frontier is told at."""


@dataclass(frozen=True)
class Frontier:
    """Predicted loss against the ratio, for the plans `numprune.allocate` makes of one recipe at many ratios.

    Attributes:
        asked: ratios asked for, ascending, (points,).
        reached: shares of the prunable parameters that go there, (points,); more or less than asked where ratios set
            by hand, forced units or rounding leave no other choice.
        loss: what these plans are predicted to add to the loss of the dense model, in nats a token, (points,).
        plan_reached, plan_loss: the same of the recipe's own ratio.
    """

    asked: np.ndarray
    reached: np.ndarray
    loss: np.ndarray
    plan_reached: float
    plan_loss: float


def frontier(scores: ScoreTable, recipe: Recipe, ratios: Sequence[float] = GRID) -> Frontier:
    """Predict what the plans of a recipe add to the loss, at many ratios and at its own.

    Takes the units in the order `allocate` does, with the recipe's own ratios, forced units, rounding and smallest
    sizes. Scores keep their order and the last few recipes their sums, so that a moved ratio costs a look-up.
    Compensation, swaps and healing change what is left and not the prediction, which holds for refitted modules.

    Args:
        ratios: shares of the prunable parameters, each in [0, 1).

    Raises:
        InputError: the scores are no prices, the recipe removes no units, or what `allocate` raises.
    """
    _check_priced(scores)
    if recipe.removal != "units":
        raise InputError(f"Method {recipe.removal} removes no units that have a price; use method units.")
    for ratio in ratios:
        check_ratio(ratio)
    asked = np.sort(np.asarray(ratios, dtype=np.float64))
    cuts = cuts_of(scores, recipe)
    spent, worth = cuts.outcomes(np.append(asked, recipe.ratio))
    reached, loss = spent / cuts.prunable, worth / MILLION
    return Frontier(asked, reached[:-1], loss[:-1], float(reached[-1]), float(loss[-1]))


def predicted_loss(scores: ScoreTable, plan: PruningPlan) -> float:
    """What a plan is predicted to add to the loss of the dense model, in nats a token.

    Raises:
        InputError: the scores are no prices, or the plan is another model's.
    """
    _check_priced(scores)
    if plan.fingerprint != scores.fingerprint:
        raise InputError(f"The plan is of another model than these scores of {scores.model}; give scores of its own.")
    gone = sum(float(module.units[plan.removed(key)].sum()) * module.cost for key, module in scores.modules.items())
    return gone / MILLION


def _check_priced(scores: ScoreTable) -> None:
    if scores.scorer not in PRICED:
        raise InputError(
            f"Scores by {scores.scorer} are no prices in nats, so they predict no loss; score the model by"
            f" {' or '.join(sorted(PRICED))}."
        )
