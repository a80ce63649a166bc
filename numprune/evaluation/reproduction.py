"""What was measured beside what the paper prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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

    Rows the paper has at a ratio that was measured are there even where the method was not; figures it does not have
    are NaN, as are all of them for images that Inception has not seen.

    Args:
        cells: of one model.
        paper: the model in the paper; None when it has none such.

    Returns:
        Columns method, ratio, measure (a text, whose perplexity it is, or an image metric), ours, paper, difference
        (ours - paper), reached, parameters, seconds.
    """
    measured = {(cell.method, cell.ratio): _Place(cell.reached, cell.parameters, cell.seconds) for cell in cells}
    ours: dict[tuple[str, float, str], float] = {}
    for cell in cells:
        for measure, value in _values(cell).items():
            ours[cell.method, cell.ratio, measure] = value
    comparable = paper is not None and all(cell.extractor in (None, INCEPTION) for cell in cells)
    printed = _printed(paper) if comparable else {}
    ratios = {ratio for _, ratio in measured}
    places = dict.fromkeys([*measured, *(place for place in printed if place[1] in ratios)])
    measures = list(dict.fromkeys(measure for *_, measure in ours))
    rows = []
    for method, ratio in sorted(places, key=lambda place: place[1]):
        place = measured.get((method, ratio), _Place(math.nan, None, None))
        for measure in measures:
            value = ours.get((method, ratio, measure), math.nan)
            theirs = printed.get((method, ratio), {}).get(measure, math.nan)
            rows.append(
                {
                    "method": method,
                    "ratio": ratio,
                    "measure": measure,
                    "ours": value,
                    "paper": theirs,
                    "difference": value - theirs,
                    "reached": place.reached,
                    "parameters": place.parameters,
                    "seconds": place.seconds,
                }
            )
    return pd.DataFrame(rows).astype({"parameters": "Int64", "seconds": "float64"})


@dataclass(frozen=True)
class _Place:
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


def curves_for(model: Model, data: Any) -> tuple[PaperModel, str, pd.DataFrame] | None:
    """The paper's curves for a language model of its tables; None for every other model.

    Args:
        data: the held-out text of the measured curves; where the paper has none of it, its WikiText2 stands there.

    Returns:
        The model in the paper, the text the curves are of, and `paper_curves` of them.
    """
    paper = paper_model(model, LLAMAS)
    if paper is None:
        return None
    text = data if isinstance(data, str) and data in TEXTS else TEXTS[0]
    return paper, text, paper_curves(paper, text)


def deviations(protocol: Protocol, **used: Any) -> list[str]:
    """In what settings differ from the paper's, a few words each.

    Args:
        used: by the names of the protocol's attributes: calibration, samples, sequence_length, images.
    """
    words = {"samples": "calibration samples", "sequence_length": "tokens per window", "images": "images drawn"}
    found = []
    for name, value in used.items():
        expected = getattr(protocol, name)
        if value != expected and name in words:
            found.append(f"{value:,} {words[name]} instead of {expected:,}")
        elif value != expected:
            found.append(f"{name} {value} instead of {expected}")
    return found


def other_ratios(protocol: Protocol, ratios: Sequence[float]) -> list[str]:
    """The ratios the paper's table does not have, in words."""
    others = [f"{ratio:g}" for ratio in ratios if ratio not in protocol.ratios]
    return [f"{protocol.title} has no ratio {', '.join(others)}"] if others else []
