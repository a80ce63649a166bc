"""Measured figures beside those the paper prints, and its protocol beside the one that was followed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F

from numprune.evaluation.cells import Cell
from numprune.evaluation.images.features import Extractor, Features
from numprune.evaluation.images.inception import INCEPTION
from numprune.evaluation.paper import IMAGE_METRICS, LABELS, LLAMAS, TEXTS, PaperModel, Protocol, Values, find
from numprune.models.model import Model

REFERENCE_SIZE = 256
"""Pixels along one side of the reference images of ImageNet."""


@dataclass(frozen=True)
class Resized:
    """An extractor that looks at images of the reference's size.

    LlamaGen's figures are of images of 384 x 384 brought to 256 x 256 by bicubic interpolation without antialiasing.
    """

    extractor: Extractor
    size: int = REFERENCE_SIZE

    @property
    def name(self) -> str:
        return self.extractor.name

    def __call__(self, images: torch.Tensor, /) -> Features:
        return self.extractor(F.interpolate(images, size=(self.size, self.size), mode="bicubic").clamp(0, 1))


def paper_model(model: Model, models: Sequence[PaperModel]) -> PaperModel | None:
    """The model of the paper that this is, by architecture and shape; None for others and for pruned ones."""
    return None if model.recipe is not None else find(model.config, tuple(models))


def beside(cells: Sequence[Cell], paper: PaperModel | None) -> pd.DataFrame:
    """One row per method, ratio and measure, the dense model first.

    At the ratios that were measured it has the paper's rows of other methods too. Figures the paper does not have are
    NaN, and so are all of its figures where the images were not measured with Inception.

    Args:
        cells: of one model.
        paper: the model in the paper; None when it is not among the paper's.

    Returns:
        Columns method, ratio, measure (a text, whose perplexity it is, or an image metric), ours, paper, difference
        (ours - paper), reached, parameters, seconds.
    """
    outcomes = {(cell.method, cell.ratio): _Outcome(cell.reached, cell.parameters, cell.seconds) for cell in cells}
    measured: dict[tuple[str, float, str], float] = {}
    for cell in cells:
        for measure, value in _values(cell).items():
            measured[cell.method, cell.ratio, measure] = value
    comparable = paper is not None and all(cell.extractor in (None, INCEPTION) for cell in cells)
    printed = _printed(paper) if comparable else {}
    ratios = {ratio for _, ratio in outcomes}
    pairs = dict.fromkeys([*outcomes, *((method, ratio) for method, ratio in printed if ratio in ratios)])
    measures = list(dict.fromkeys(measure for *_, measure in measured))
    rows = []
    for method, ratio in sorted(pairs, key=lambda pair: pair[1]):
        outcome = outcomes.get((method, ratio), _Outcome(math.nan, None, None))
        for measure in measures:
            value = measured.get((method, ratio, measure), math.nan)
            published = printed.get((method, ratio), {}).get(measure, math.nan)
            rows.append(
                {
                    "method": method,
                    "ratio": ratio,
                    "measure": measure,
                    "ours": value,
                    "paper": published,
                    "difference": value - published,
                    "reached": outcome.reached,
                    "parameters": outcome.parameters,
                    "seconds": outcome.seconds,
                }
            )
    return pd.DataFrame(rows).astype({"parameters": "Int64", "seconds": "float64"})


@dataclass(frozen=True)
class _Outcome:
    """What a method made of a model at a ratio, whatever was measured of it."""

    reached: float
    parameters: int | None
    seconds: float | None


def _values(cell: Cell) -> dict[str, float]:
    if cell.perplexity is not None:
        return {cell.data or "text": cell.perplexity}
    values = (cell.fid, cell.sfid, cell.inception_score, cell.precision, cell.recall)
    return {metric: value for metric, value in zip(IMAGE_METRICS, values, strict=True) if value is not None}


def _printed(paper: PaperModel) -> dict[tuple[str, float], Values]:
    return {("dense", 0.0): paper.dense, **paper.rows}


def paper_curves(paper: PaperModel, measure: str) -> pd.DataFrame:
    """The paper's curves for `numprune.ui.figures.methods_chart`: columns method, label, ratio, measure.

    Of a text the excess loss ln PPL pruned - ln PPL dense, of an image metric its value.
    """
    rows = []
    for (method, ratio), values in paper.rows.items():
        if measure in values:
            value = values[measure]
            if measure in TEXTS:
                value = math.log(value) - math.log(paper.dense[measure])
            rows.append({"method": method, "label": f"{LABELS[method]}, paper", "ratio": ratio, "measure": value})
    return pd.DataFrame(rows, columns=["method", "label", "ratio", "measure"])


class PaperCurves(NamedTuple):
    """The paper's curves for a model: which model of the paper it is, the text they are of, and `paper_curves`."""

    model: PaperModel
    text: str
    table: pd.DataFrame

    @property
    def caption(self) -> str:
        """What a chart says about the curves, which are drawn dashed."""
        return f"dashed: the paper's figures for {self.model.name} on {self.text}, 2048 tokens"


def curves_for(model: Model, data: Any) -> PaperCurves | None:
    """The paper's curves for a language model of its tables; None for every other model.

    Args:
        data: the held-out text of the measured curves; where the paper has none of it, the curves are of its WikiText2.
    """
    paper = paper_model(model, LLAMAS)
    if paper is None:
        return None
    text = data if isinstance(data, str) and data in TEXTS else TEXTS[0]
    return PaperCurves(paper, text, paper_curves(paper, text))


def deviations(protocol: Protocol, **used: Any) -> list[str]:
    """The settings that differ from the paper's, a few words each.

    Args:
        used: by the names of the protocol's attributes: calibration, samples, sequence_length, images.
    """
    words = {"samples": "calibration samples", "sequence_length": "tokens per window", "images": "images drawn"}
    differing = []
    for name, value in used.items():
        expected = getattr(protocol, name)
        if value != expected and name in words:
            differing.append(f"{value:,} {words[name]} instead of {expected:,}")
        elif value != expected:
            differing.append(f"{name} {value} instead of {expected}")
    return differing


def protocol_notes(protocol: Protocol, differing: Sequence[str]) -> list[str]:
    """Sentences on the protocol: in what the measurement differs, and what the paper leaves open."""
    notes = [f"Not the paper's protocol: {'; '.join(differing)}."] if differing else []
    return [*notes, f"What the paper leaves open: {'; '.join(protocol.unsaid)}."]


def other_ratios(protocol: Protocol, ratios: Sequence[float]) -> list[str]:
    """The ratios the paper's table does not have, in words."""
    others = [f"{ratio:g}" for ratio in ratios if ratio not in protocol.ratios]
    return [f"{protocol.title} has no ratio {', '.join(others)}"] if others else []
