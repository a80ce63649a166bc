"""The predicted loss as the page shows it: nothing where the scores are no prices."""

from __future__ import annotations

from typing import Any

from numprune.allocation import frontier
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import Recipe
from numprune.scoring import PRICED, ScoreTable


def predicted_loss(scores: ScoreTable, plan: PruningPlan) -> float | None:
    """What a plan is predicted to add to the loss, in nats a token; None where nobody can tell."""
    return frontier.predicted_loss(scores, plan) if _known(scores, plan.recipe) else None


def prediction(scores: ScoreTable, recipe: Recipe) -> dict[str, Any]:
    """The predicted `loss` of a recipe's plan and the `curve` it lies on, both None where nobody can tell."""
    if not _known(scores, recipe):
        return {"loss": None, "curve": None}
    found = frontier.frontier(scores, recipe)
    curve = {"reached": found.reached.round(4).tolist(), "loss": found.loss.round(5).tolist()}
    return {"loss": found.plan_loss, "curve": curve}


def _known(scores: ScoreTable, recipe: Recipe) -> bool:
    return scores.scorer in PRICED and recipe.removal == "units"
