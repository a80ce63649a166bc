"""From statistics to one score per head and channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from numprune.calibration.statistics import CalibrationStats, ModuleStats
from numprune.errors import CancelEvent, InputError, Progress, check_cancelled
from numprune.models.adapter import Block, ModuleKey
from numprune.models.model import Model
from numprune.scoring.newton import check_ratio, numerical_score
from numprune.scoring.table import ModuleScores, ScoreTable


class Scorer(Protocol):
    """Scores the input channels of a module's last linear.

    Takes the weight (out, in) as torch stores it, the statistics of its inputs, the sparsity ratio and the module's
    key; returns (in,) scores, higher meaning more worth keeping. Allocation "global" compares them between modules;
    where they cannot be compared, choose "uniform".
    """

    def __call__(self, weight: torch.Tensor, stats: ModuleStats, *, ratio: float, key: ModuleKey) -> torch.Tensor: ...


class BlockScorer(Protocol):
    """As `Scorer`, for methods that look at whole units: the block tells how many there are and how wide. The weight
    lies where the statistics do."""

    def __call__(self, block: Block, weight: torch.Tensor, stats: ModuleStats, *, ratio: float) -> torch.Tensor: ...


class ModelScorer(Protocol):
    """Scores the input channels of the last linears of all modules, (in,) each; for methods that need more of the
    model than one weight."""

    def __call__(
        self,
        model: Model,
        stats: CalibrationStats,
        *,
        ratio: float,
        progress: Progress | None = None,
        cancel: CancelEvent | None = None,
    ) -> dict[ModuleKey, torch.Tensor]: ...


SCORERS: dict[str, ModelScorer] = {}


def model_scorer(name: str) -> Callable[[ModelScorer], ModelScorer]:
    """Decorator that makes a scorer of whole models known by name, as `scorer` does."""

    def add(function: ModelScorer) -> ModelScorer:
        SCORERS[name] = function
        return function

    return add


def block_scorer(name: str) -> Callable[[BlockScorer], BlockScorer]:
    """Decorator that makes a scorer that needs to know a module's units known by name, as `scorer` does."""

    def add(function: BlockScorer) -> BlockScorer:
        @model_scorer(name)
        def of_model(
            model: Model,
            stats: CalibrationStats,
            *,
            ratio: float,
            progress: Progress | None = None,
            cancel: CancelEvent | None = None,
        ) -> dict[ModuleKey, torch.Tensor]:
            blocks, scores = model.blocks, {}
            for done, block in enumerate(blocks, 1):
                check_cancelled(cancel)
                module = stats.modules[block.key]
                weight = block.last.weight.detach().to(module.gram.device)
                scores[block.key] = function(block, weight, module, ratio=ratio)
                if progress is not None:
                    progress(done, len(blocks), f"scoring {block.key}")
            return scores

        return function

    return add


def scorer(name: str) -> Callable[[Scorer], Scorer]:
    """Decorator that makes a scorer known by name to `score`, recipes, the command line and the dashboard."""

    def add(function: Scorer) -> Scorer:
        @block_scorer(name)
        def of_block(block: Block, weight: torch.Tensor, stats: ModuleStats, *, ratio: float) -> torch.Tensor:
            return function(weight, stats, ratio=ratio, key=block.key)

        return function

    return add


def unit_gram(stats: ModuleStats) -> torch.Tensor:
    """XᵀX of X scaled to Frobenius norm 1, as the paper bounds its norm; zeros stay zeros."""
    return stats.gram / stats.gram.trace().clamp(min=torch.finfo(torch.float64).tiny)


@scorer("newton")
def newton(weight: torch.Tensor, stats: ModuleStats, *, ratio: float, key: ModuleKey) -> torch.Tensor:
    """The numerical score in closed form."""
    return numerical_score(weight, unit_gram(stats), ratio=ratio)


@scorer("newton_loop")
def newton_loop(weight: torch.Tensor, stats: ModuleStats, *, ratio: float, key: ModuleKey) -> torch.Tensor:
    """The numerical score by Algorithm 1 of the paper, 50 steps."""
    return numerical_score(weight, unit_gram(stats), ratio=ratio, method="newton")


@scorer("newton_boxed")
def newton_boxed(weight: torch.Tensor, stats: ModuleStats, *, ratio: float, key: ModuleKey) -> torch.Tensor:
    """The numerical score under 0 <= z <= 1."""
    return numerical_score(weight, unit_gram(stats), ratio=ratio, method="boxed", steps=200)


def score(
    model: Model,
    stats: CalibrationStats,
    *,
    method: str = "newton",
    ratio: float = 0.5,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> ScoreTable:
    """One score per unit of every module; a head's (KV group's) is the mean over its channels (section 3.3).

    Args:
        method: a name in `SCORERS`.
        ratio: the sparsity the scores are computed for, in [0, 1). It shifts the Newton scores of a module
            towards 1 - ratio and leaves their order as it is.

    Raises:
        InputError: the method is unknown, the ratio out of range, or the statistics are another model's.
        NumericalError: a module cannot be scored.
        Cancelled: `cancel` was set.
    """
    check_ratio(ratio)
    if method not in SCORERS:
        raise InputError(f"Scorer '{method}' is not known; use {', '.join(SCORERS)}.")
    fingerprint = model.fingerprint()
    if stats.fingerprint != fingerprint:
        raise InputError(f"The statistics are of another model than {model.name}; calibrate it first.")
    found = SCORERS[method](model, stats, ratio=ratio, progress=progress, cancel=cancel)
    modules = {}
    for block in model.blocks:
        channels = found[block.key].cpu()
        modules[block.key] = ModuleScores(
            units=channels.reshape(block.units, block.width).mean(1).numpy(),
            channels=channels.numpy(),
            cost=block.cost,
            remainder=block.remainder,
        )
    return ScoreTable(
        modules=modules,
        method=method,
        ratio=ratio,
        model=model.name,
        fingerprint=fingerprint,
        parameters=model.parameters,
    )
