"""From a plan to a better one of the same size: units exchanged inside their modules (OSSCAR's swaps)."""

from __future__ import annotations

from dataclasses import replace

from numprune.allocation import SWAPS_AHEAD, PruningPlan
from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.models.model import Model
from numprune.scoring.exchange import exchange


def refine(
    model: Model,
    plan: PruningPlan,
    stats: CalibrationStats,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> PruningPlan:
    """The plan with the swaps of its recipe carried out (`numprune.scoring.exchange`), whatever scored its units.

    Every module keeps as many units as before; units the recipe forces stay where they are. The loss that falls is
    each module's own compensated one, with the recipe's damping. A plan without swaps, or one that was refined before,
    comes back as it is.

    Raises:
        InputError: plan or statistics are another model's.
        NumericalError: a Gram matrix cannot be factorised; the module is named.
        Cancelled: `cancel` was set.
    """
    recipe = plan.recipe
    if not recipe.swaps or plan.refined:
        return plan
    fingerprint = model.fingerprint()
    for what, owner in (("plan", plan.fingerprint), ("statistics", stats.fingerprint)):
        if owner != fingerprint:
            raise InputError(f"The {what} belong to another model than {model.name}; make them for this one.")
    keep, exchanged, blocks = dict(plan.keep), 0, model.blocks
    for done, block in enumerate(blocks, 1):
        check_cancelled(cancel)
        kept = plan.keep[block.key]
        if 0 < len(kept) < block.units:
            gram = stats.modules[block.key].gram
            try:
                keep[block.key], _, _ = exchange(
                    block.last.weight.detach().to(gram.device),
                    gram,
                    kept,
                    width=block.width,
                    damping=recipe.damping,
                    swaps=recipe.swaps,
                    fixed=(*recipe.keep.get(block.key, ()), *recipe.prune.get(block.key, ())),
                )
            except NumericalError as error:
                raise NumericalError(f"Exchanging units of {block.key}: {error}") from error
            exchanged += len(set(keep[block.key]) - set(kept))
        if progress is not None:
            progress(done, len(blocks), f"exchanging units of {block.key}")
    notes = [note for note in plan.notes if note != SWAPS_AHEAD]
    notes.append(f"Swaps exchanged {exchanged:,} of the kept units for others of their modules.")
    return replace(plan, keep=keep, notes=notes, refined=True)
