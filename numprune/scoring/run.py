"""From statistics to one score per head and channel."""

from __future__ import annotations

import torch

from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, NumericalError, Progress
from numprune.linalg import all_finite
from numprune.models.adapter import Block
from numprune.models.model import Model
from numprune.plan.recipe import check_ratio
from numprune.scoring import baselines, elimination, fisher, newton, taylor  # noqa: F401  (each registers its scorers)
from numprune.scoring.registry import SCORERS, check_scorer
from numprune.scoring.table import ModuleScores, ScoreTable


def score(
    model: Model,
    stats: CalibrationStats,
    *,
    scorer: str = "newton",
    ratio: float = 0.5,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> ScoreTable:
    """One score per unit of every module; a head's (KV group's) is the mean over its channels (section 3.3).

    Args:
        scorer: a name in `SCORERS`.
        ratio: the sparsity the scores are computed for, in [0, 1). It shifts the Newton scores of a module
            towards 1 - ratio and leaves their order as it is.

    Raises:
        InputError: the scorer is unknown, the ratio out of range, or the statistics are another model's.
        NumericalError: a module cannot be scored, or a score is not finite; the module is named.
        Cancelled: `cancel` was set.
    """
    check_ratio(ratio)
    check_scorer(scorer)
    fingerprint = model.check_own(statistics=stats.fingerprint)
    channel_scores = SCORERS[scorer](model, stats, ratio=ratio, progress=progress, cancel=cancel)
    modules = {}
    for block in model.blocks:
        modules[block.key] = module_scores(block, channel_scores[block.key], scorer)
    return ScoreTable(
        modules=modules,
        scorer=scorer,
        ratio=ratio,
        model=model.name,
        fingerprint=fingerprint,
        parameters=model.parameters,
        beside=model.beside,
        influence=() if stats.influence is None else tuple(stats.influence.tolist()),
    )


def module_scores(block: Block, channels: torch.Tensor, scorer: str) -> ModuleScores:
    """What a scorer gave the channels of one module, (units * width,), with what allocation needs.

    Raises:
        NumericalError: a score is not finite.
    """
    channels = channels.cpu()
    if not all_finite(channels):
        raise NumericalError(
            f"Scorer {scorer} gave {block.key} a score that is NaN or infinite; check its weights and the"
            " calibration data, or load the model in float32."
        )
    return ModuleScores(
        units=channels.reshape(block.units, block.width).mean(1).numpy(),
        channels=channels.numpy(),
        cost=block.cost,
        remainder=block.remainder,
    )
