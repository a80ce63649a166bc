"""Prices tilted between heads and channels and along the depth, by the loss of the pruned and fitted model.

Curves of every module and exchanges between them take passes in proportion to the number of modules, which is hours
where there are many. What is wrong with prices measured in the dense network is mostly common to many modules: the fit
makes up for more of what one kind of module loses than of the other, and for more of what early layers lose than late
ones, which have fewer modules behind them. Two numbers hold that, whatever the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from numprune.allocation.threshold import allocate
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import Recipe
from numprune.scoring.table import ScoreTable

TRIALS = 8
"""Plans that are measured at most, the untilted one included."""


@dataclass(frozen=True)
class Tilt:
    """Prices of heads times 2 ** heads, and those of all units times 2 ** -depth in the first layer up to 2 ** depth in
    the last."""

    heads: float = 0.0
    depth: float = 0.0

    def applied(self, scores: ScoreTable) -> ScoreTable:
        """The scores with tilted prices."""
        last = max(1, max(key.layer for key in scores.modules))
        modules = {}
        for key, module in scores.modules.items():
            exponent = self.depth * (2 * key.layer / last - 1) + self.heads * (key.kind == "attention")
            modules[key] = replace(module, units=np.multiply(module.units, 2.0**exponent))
        return replace(scores, modules=modules)

    def moved(self, name: str, step: float) -> Tilt:
        return replace(self, **{name: getattr(self, name) + step})


def search_tilts(loss: Callable[[PruningPlan], float], scores: ScoreTable, recipe: Recipe) -> Iterator[PruningPlan]:
    """The plans of a search for the tilt of least loss, each better than those before; the first is untilted.

    Each of the two numbers in turn goes one step up and down, and on in the direction that was better while the loss
    falls; then by half a step, until `TRIALS` plans were measured.

    Args:
        loss: of a plan, in nats a token; infinite for one that must not be taken.
        recipe: how to allocate; all plans spend its budget.
    """
    best, measured = Tilt(), {}

    def try_(tilt: Tilt) -> float:
        if tilt not in measured and len(measured) < TRIALS:
            plan = allocate(tilt.applied(scores), recipe)
            measured[tilt] = loss(plan), plan
        return measured[tilt][0] if tilt in measured else np.inf

    try_(best)
    yield measured[best][1]
    for step in (1.0, 0.5):
        for name in ("heads", "depth"):
            here = try_(best)
            better = min((best.moved(name, step), best.moved(name, -step)), key=try_)
            while try_(better) < here:
                onward = better.moved(name, getattr(better, name) - getattr(best, name))
                best, here, better = better, try_(better), onward
                yield measured[best][1]
