"""The predicted loss, where the scores are prices."""

from __future__ import annotations

from typing import Any

import numpy as np

from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import Recipe
from numprune.scoring import ScoreTable

GRID = np.linspace(0, 0.9, 91)


def predicted_loss(scores: ScoreTable, plan: PruningPlan) -> float | None:
    if scores.scorer != "fisher" or plan.recipe.removal != "units":
        return None
    return sum(float(m.units[plan.removed(key)].sum()) * m.cost for key, m in scores.modules.items()) / 1e6


def curve(scores: ScoreTable, recipe: Recipe) -> dict[str, Any] | None:
    if scores.scorer != "fisher" or recipe.removal != "units":
        return None
    units = np.concatenate([m.units for m in scores.modules.values()])
    costs = np.concatenate([np.full(len(m.units), m.cost) for m in scores.modules.values()])
    order = np.argsort(units, kind="stable")
    share, loss = np.cumsum(costs[order]) / costs.sum(), np.cumsum((units * costs)[order]) / 1e6
    at = np.searchsorted(share, GRID[1:])
    return {"reached": [0, *share[at].round(4).tolist()], "loss": [0, *loss[at].round(5).tolist()]}
