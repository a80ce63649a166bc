"""The loss that equal counts in every layer cost."""

from __future__ import annotations

from numprune.allocation.threshold import allocate
from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, InputError, Progress
from numprune.evaluation.perplexity import perplexity
from numprune.models.model import Model
from numprune.pruning import prune
from numprune.scoring.table import ScoreTable


def cost_of_uniform(
    model: Model,
    pruned: Model,
    stats: CalibrationStats,
    scores: ScoreTable,
    *,
    samples: int = 32,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> str:
    """A sentence with the perplexity of `pruned` and of what the same recipe makes when layers may differ.

    Both are measured on the first calibration sequences, which both were fitted to alike.

    Args:
        model: the dense model.
        pruned: by a recipe with `uniform`, from these statistics and scores.
        samples: calibration sequences to measure on, at most.

    Raises:
        InputError: the statistics hold no token ids, or `pruned` has no recipe.
        Cancelled: `cancel` was set.
    """
    if stats.rows is None:
        raise InputError("These statistics hold no token ids to measure the loss on; calibrate again.")
    if pruned.recipe is None:
        raise InputError(f"{pruned.name} has no recipe to compare with; prune it with one.")
    plan = allocate(scores, pruned.recipe.replace(uniform=False))
    other = prune(model, plan, stats, progress=progress, cancel=cancel)
    rows = stats.rows[:samples].long()
    equal, free = (
        perplexity(compared, rows, sequence_length=rows.shape[1], progress=progress, cancel=cancel)
        for compared in (pruned, other)
    )
    return (
        f"Equal counts in every layer change the perplexity by {equal - free:+.3g}, from the {free:.4g} of free counts"
        f" to {equal:.4g}, on {equal.tokens:,} tokens of the calibration text ({len(rows)} sequences)."
    )
