"""Sizes of a model, counted: parameters, bytes of weights and cache, operations per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numprune.models.outline import Sizes, counted

if TYPE_CHECKING:
    from numprune.models.model import Model
    from numprune.plan.plan import PruningPlan

__all__ = ["Sizes", "sizes"]


def sizes(model: Model, plan: PruningPlan | None = None, *, context: int = 1000) -> Sizes:
    """Sizes of `model`, or of what `prune` would make of it.

    Nothing is pruned for it and no weight is read, so it is quick enough to be shown while a slider moves.

    Args:
        plan: from `allocate`, for this model; None for the model as it is.
        context: tokens in the cache when the token whose operations are counted is decoded; 0 for the first.

    Raises:
        InputError: the plan is another model's, or `context` is negative.
    """
    return counted(model).sizes(plan, context=context)
