"""One recipe at several ratios: size, speed and perplexity (paper, figure 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numprune.allocation.depth import choose_depth, depth_of
from numprune.allocation.threshold import allocate
from numprune.calibration.data import Data
from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, InputError, Progress
from numprune.evaluation.footprint import Sizes, sizes
from numprune.evaluation.perplexity import Perplexity, perplexity
from numprune.evaluation.speed import Speed, gain_over, measure_in_turn, speed_of
from numprune.models.model import Model
from numprune.plan.recipe import Recipe
from numprune.pruning import prune
from numprune.scoring.depth import DepthScores
from numprune.scoring.table import ScoreTable


@dataclass(frozen=True)
class SweepPoint:
    """A model pruned at one ratio.

    Attributes:
        ratio: share of the prunable parameters to remove; 0 is the dense model itself.
        reached: share that was removed.
        sizes, speed: of the pruned model.
        decode_gain, prefill_gain: how many times as fast as the dense model it is, the two timed in turn: median,
            lowest and highest.
        perplexity: of the pruned model; None when no text was given.
    """

    ratio: float
    reached: float
    sizes: Sizes
    speed: Speed
    decode_gain: tuple[float, float, float]
    prefill_gain: tuple[float, float, float]
    perplexity: Perplexity | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio,
            "reached": self.reached,
            "sizes": self.sizes.to_dict(),
            "speed": self.speed.to_dict(),
            "decode_gain": self.decode_gain,
            "prefill_gain": self.prefill_gain,
            "perplexity": None if self.perplexity is None else self.perplexity.to_dict(),
        }


def sweep(
    model: Model,
    stats: CalibrationStats,
    scores: ScoreTable,
    recipe: Recipe,
    ratios: Sequence[float],
    *,
    data: Data | None = None,
    repetitions: int = 5,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Iterator[SweepPoint]:
    """Prune at every ratio with the settings of one recipe, and measure, each in turn with the dense model.

    Points come one by one, in the order of `ratios`; a pruned model is freed before its point is yielded, so that
    memory never holds more than the dense model and one other.

    Args:
        stats, scores: from `calibrate` and `score`, for this model.
        recipe: its ratio is not used; at ratio 0 the dense model is measured, whatever the recipe forces.
        ratios: shares of the prunable parameters to remove, each in [0, 1).
        data: text to measure perplexity on, as in `numprune.perplexity`, with BOS where the recipe's calibration has
            it; None leaves perplexity out.
        repetitions, prompt_tokens, new_tokens: as in `numprune.measure_speed`.

    Raises:
        InputError: a ratio is out of range or there is none; and what `allocate`, `prune`, `perplexity` and
            `measure_speed` raise, while the points are drawn.
        Cancelled: `cancel` was set.
    """
    if not ratios:
        raise InputError("There is no ratio to prune at; give at least one, such as 0.3.")
    # Speed does not depend on the values of weights, so they are refitted only where their predictions are read.
    settings = recipe if data is not None else recipe.replace(compensation="none", healing=0)
    recipes = [settings.at(ratio) for ratio in ratios]
    whole = _depth_for(model, stats, recipes, progress, cancel)

    def point(asked: Recipe) -> SweepPoint:
        tell = None if progress is None else _at(asked.ratio, progress)
        chosen, reached = model, 0.0
        if asked.ratio:
            asked = asked if whole is None else choose_depth(scores, whole, asked)
            chosen = prune(model, allocate(scores, asked), stats, progress=tell, cancel=cancel)
            reached = chosen.report.ratio_reached
        records = measure_in_turn(
            [model, chosen] if asked.ratio else [model],
            [1] * prompt_tokens,
            new_tokens=new_tokens,
            batch=1,
            repetitions=repetitions,
            progress=tell,
            cancel=cancel,
        )
        decode_gain, prefill_gain = gain_over(records[0], records[-1])
        return SweepPoint(
            ratio=asked.ratio,
            reached=reached,
            sizes=sizes(chosen),
            speed=speed_of(chosen, records[-1], prompt_tokens, 1),
            decode_gain=decode_gain,
            prefill_gain=prefill_gain,
            perplexity=None
            if data is None
            else perplexity(chosen, data, bos=asked.calibration.bos, progress=tell, cancel=cancel),
        )

    return map(point, recipes)


def _depth_for(
    model: Model,
    stats: CalibrationStats,
    recipes: Sequence[Recipe],
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> DepthScores | None:
    """What all the recipes' depth goes by; None where nothing goes as a whole by its score."""
    largest = max(recipe.ratio for recipe in recipes)
    if recipes[0].depth == "none" or not largest:
        return None
    return depth_of(model, stats, recipes[0], most=largest, progress=progress, cancel=cancel)


def _at(ratio: float, progress: Progress) -> Progress:
    """`progress` that says which point is worked on."""
    return lambda done, total, what, /: progress(done, total, f"ratio {ratio:g}: {what}")
