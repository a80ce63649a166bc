"""From a plan to a better one of the same size: kept and removed units of a module swap (OSSCAR's local search)."""

from __future__ import annotations

from dataclasses import replace

from numprune.allocation.swap_search import search_swaps
from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, NumericalError, Progress, check_cancelled
from numprune.linalg import float64_device
from numprune.models.model import Model
from numprune.plan.plan import PruningPlan


def swap_units(
    model: Model,
    plan: PruningPlan,
    stats: CalibrationStats,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> PruningPlan:
    """The plan with the swaps of its recipe carried out (`numprune.allocation.swap_search`), whatever scored its units.

    Every module keeps as many units as before; units the recipe forces stay where they are. The loss that falls is
    each module's own compensated one, with the recipe's damping. A plan without swaps, or one whose swaps are
    done, comes back as it is.

    Raises:
        InputError: plan or statistics are another model's.
        NumericalError: a Gram matrix cannot be factorised; the module is named.
        Cancelled: `cancel` was set.
    """
    recipe = plan.recipe
    if not recipe.swaps or plan.swapped:
        return plan
    model.check_own(plan=plan.fingerprint, statistics=stats.fingerprint)
    keep, swapped, blocks = dict(plan.keep), 0, model.blocks
    for done, block in enumerate(blocks, 1):
        check_cancelled(cancel)
        kept = plan.keep[block.key]
        if 0 < len(kept) < block.units:
            weight = block.last.weight.detach()
            weight = weight.to(float64_device(weight.device))
            gram = stats.modules[block.key].gram.to(weight.device)
            try:
                keep[block.key], _, _ = search_swaps(
                    weight,
                    gram,
                    kept,
                    width=block.width,
                    damping=recipe.damping,
                    swaps=recipe.swaps,
                    fixed=(*recipe.keep.get(block.key, ()), *recipe.prune.get(block.key, ())),
                )
            except NumericalError as error:
                raise NumericalError(f"Swapping units of {block.key}: {error}") from error
            swapped += len(set(keep[block.key]) - set(kept))
        if progress is not None:
            progress(done, len(blocks), f"swapping units of {block.key}")
    note = f"Swaps exchanged {swapped:,} of the kept units for others of their modules."
    return replace(plan, keep=keep, notes=[*plan.notes, note], swapped=True)
