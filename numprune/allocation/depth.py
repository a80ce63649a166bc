"""What goes as a whole under a recipe: so many of the modules or layers that go first by their own scores."""

from __future__ import annotations

from collections.abc import Mapping

from numprune.allocation.frontier import frontier
from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, InputError, Progress
from numprune.models.model import Model
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import Recipe
from numprune.scoring.depth import OF_LAYERS, DepthScores, check_depth_scorer, score_depth
from numprune.scoring.registry import MILLION, PRICED
from numprune.scoring.table import ScoreTable


def with_depth(
    model: Model,
    stats: CalibrationStats,
    scores: ScoreTable,
    recipe: Recipe,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Recipe:
    """A recipe with what goes as a whole, chosen where it says how and not what; the others come back as they are.

    Raises:
        InputError, NumericalError, Cancelled: as `score_depth` and `choose_depth`.
    """
    if recipe.depth == "none" or recipe.drop:
        return recipe
    return choose_depth(scores, depth_of(model, stats, recipe, progress=progress, cancel=cancel), recipe)


def depth_of(
    model: Model,
    stats: CalibrationStats,
    recipe: Recipe,
    *,
    most: float | None = None,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> DepthScores:
    """What a recipe's depth goes by, up to its ratio, or to another one that several recipes do not exceed."""
    return score_depth(
        model,
        stats,
        scorer=recipe.depth_scorer,
        whole=recipe.depth,
        most=recipe.ratio if most is None else most,
        progress=progress,
        cancel=cancel,
    )


def check_depth(recipe: Recipe) -> None:
    """Raise InputError for a depth that its scorer, or the recipe's, cannot choose."""
    if recipe.depth == "none":
        return
    check_depth_scorer(recipe.depth_scorer, recipe.depth)
    if recipe.allocation != "none" and (recipe.scorer not in PRICED or recipe.depth_scorer in OF_LAYERS):
        raise InputError(
            f"Units by {recipe.scorer} and {recipe.depth} by {recipe.depth_scorer} are not compared: one of them is no"
            f" loss in nats; use scorer {' or '.join(sorted(PRICED))} with depth_scorer loss, or allocation none."
        )


def choose_depth(scores: ScoreTable, depth: DepthScores, recipe: Recipe) -> Recipe:
    """The recipe with the modules in `drop` that go as a whole at its ratio.

    With allocation "none" these are all that goes: as many as come nearest to the ratio. Otherwise heads and channels
    pay the rest of the budget, and as many go as a whole as make the least of what both are predicted to add to the
    loss: the measured loss of the modules that go, and the prices of the units that go of the others. Modules that the
    recipe sets a ratio for, or forces units of to stay or to go, do not go as a whole.

    Args:
        scores: prices (`PRICED`), unless the allocation is "none".
        depth: of the same model, by the recipe's `depth_scorer`.

    Raises:
        InputError: the recipe has depth "none", or another one than `depth`; scores or depth are another model's; or
            units and modules cannot be compared, since one of both scores is no loss.
    """
    if (recipe.depth, recipe.depth_scorer) != (depth.whole, depth.scorer):
        raise InputError(
            f"The recipe has depth {recipe.depth} by {recipe.depth_scorer} and these scores are of {depth.whole} by"
            f" {depth.scorer}; score the model for the recipe."
        )
    if depth.fingerprint != scores.fingerprint:
        raise InputError(f"The depth scores are of another model than {scores.model}; make them for this one.")
    check_depth(recipe)
    whole_only = recipe.allocation == "none"
    locked = recipe.ratios.keys() | recipe.keep.keys() | recipe.prune.keys()
    plain = recipe.replace(drop=())
    sizes = {key: len(module.units) * module.cost for key, module in scores.modules.items()}
    steps = unlocked(depth, locked, sizes)
    budget = recipe.ratio * scores.prunable_parameters
    if whole_only:
        best = min(steps, key=lambda step: abs(sum(sizes[key] for key in steps[step]) - budget))
        return plain.replace(drop=steps[best])
    losses = {
        step: float(depth.loss[step]) + _width_loss(scores, plain.replace(drop=drop))
        for step, drop in steps.items()
        if sum(sizes[key] for key in drop) <= budget
    }
    return plain.replace(drop=steps[min(losses, key=losses.__getitem__)])


def unlocked(
    depth: DepthScores, locked: set[ModuleKey], sizes: Mapping[ModuleKey, int]
) -> dict[int, tuple[ModuleKey, ...]]:
    """What goes after each step without what is locked; a step that adds nothing to an earlier one is left out."""
    layers = {key.layer for key in locked} if depth.whole == "layers" else set()
    steps: dict[int, tuple[ModuleKey, ...]] = {}
    for step, gone in enumerate(depth.gone):
        drop = tuple(key for key in gone if key not in locked and key.layer not in layers)
        if drop not in steps.values() and len(drop) < len(sizes):
            steps[step] = drop
    return steps


def _width_loss(scores: ScoreTable, recipe: Recipe) -> float:
    """What the units are predicted to add that go beside the modules that go as a whole, in nats a token."""
    predicted = frontier(scores, recipe, (recipe.ratio,)).plan_loss
    return (
        predicted
        - sum(float(scores.modules[key].units.sum()) * scores.modules[key].cost for key in recipe.drop) / MILLION
    )
