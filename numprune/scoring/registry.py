"""The scorers by name, and how a new one becomes known: one decorated function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from numprune.errors import CancelEvent, InputError, Progress, check_cancelled

if TYPE_CHECKING:
    import torch

    from numprune.calibration.statistics import CalibrationStats, ModuleStats
    from numprune.models.adapter import Block
    from numprune.models.model import Model
    from numprune.plan.keys import ModuleKey


class Scorer(Protocol):
    """Scores the input channels of a module's last linear.

    Takes the weight (out, in) as torch stores it, the statistics of its inputs, the sparsity ratio and the module's
    key; returns (in,) scores, higher meaning more worth keeping. Allocation "global" compares them between modules;
    where they cannot be compared, choose "uniform".
    """

    def __call__(self, weight: torch.Tensor, stats: ModuleStats, *, ratio: float, key: ModuleKey) -> torch.Tensor: ...


class BlockScorer(Protocol):
    """As `Scorer`, for methods that look at whole units: the block tells how many there are and how wide. The weight
    lies where the statistics do. `progress` and `cancel` are for work inside one module."""

    def __call__(
        self,
        block: Block,
        weight: torch.Tensor,
        stats: ModuleStats,
        *,
        ratio: float,
        progress: Progress | None,
        cancel: CancelEvent | None,
    ) -> torch.Tensor: ...


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
BLOCK_SCORERS: dict[str, BlockScorer] = {}
"""Those of them that look at one module alone, and so need no more of the model at a time."""
BUILT_IN = (
    "magnitude",
    "wanda_sp",
    "flap",
    "random",
    "newton",
    "newton_loop",
    "newton_boxed",
    "osscar",
    "newton_greedy",
    "fisher",
    "taylor",
)
"""Names that `SCORERS` has once `numprune.scoring.run` is imported, which takes torch."""
PRICED = {"fisher"}
"""Scorers whose scores are prices: nats a token that go with a unit, for a million parameters."""
MILLION = 1e6


def model_scorer(name: str, *, priced: bool = False) -> Callable[[ModelScorer], ModelScorer]:
    """Decorator that makes a scorer of whole models known by name, as `scorer` does; `priced` puts it in `PRICED`."""

    def add(function: ModelScorer) -> ModelScorer:
        SCORERS[name] = function
        if priced:
            PRICED.add(name)
        return function

    return add


def block_scorer(name: str) -> Callable[[BlockScorer], BlockScorer]:
    """Decorator that makes a scorer that needs to know a module's units known by name, as `scorer` does."""

    def add(function: BlockScorer) -> BlockScorer:
        BLOCK_SCORERS[name] = function

        @model_scorer(name)
        def of_model(
            model: Model,
            stats: CalibrationStats,
            *,
            ratio: float,
            progress: Progress | None = None,
            cancel: CancelEvent | None = None,
        ) -> dict[ModuleKey, torch.Tensor]:
            from numprune.linalg import float64_device
            from numprune.ranks import joined

            blocks, ranks, scores = {block.key: block for block in model.blocks}, joined(), {}
            own = ranks.share_modules({key: block.solving for key, block in blocks.items()})
            for done, block in enumerate(map(blocks.__getitem__, own), 1):
                check_cancelled(cancel)
                weight = block.last.weight.detach()
                weight = weight.to(float64_device(weight.device))
                module = stats.modules[block.key].to(weight.device)
                found = function(block, weight, module, ratio=ratio, progress=progress, cancel=cancel)
                scores[block.key] = found.cpu()
                if progress is not None:
                    progress(done, len(own), f"scoring {block.key}")
            return ranks.exchange(scores)

        return function

    return add


def scorer(name: str) -> Callable[[Scorer], Scorer]:
    """Decorator that makes a scorer known by name to `score`, recipes, the command line and the dashboard."""

    def add(function: Scorer) -> Scorer:
        @block_scorer(name)
        def of_block(
            block: Block,
            weight: torch.Tensor,
            stats: ModuleStats,
            *,
            ratio: float,
            progress: Progress | None,
            cancel: CancelEvent | None,
        ) -> torch.Tensor:
            return function(weight, stats, ratio=ratio, key=block.key)

        return function

    return add


def check_scorer(name: str) -> None:
    """Raise InputError unless a scorer has this name."""
    if name not in SCORERS:
        raise InputError(f"scorer '{name}' is not known; use {', '.join(SCORERS)}.")
