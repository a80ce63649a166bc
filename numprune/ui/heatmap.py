"""Heatmaps as HTML: one image of coloured cells, with the plan drawn over it and the values behind it.

A picture of 32 x 1024 cells weighs a quarter of what a chart library needs for it, keeps its focus and handlers when
it is redrawn, and can be walked with the arrow keys (`heatmap.js`).
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from plotly.colors import sample_colorscale, unlabel_rgb

View = Literal["raw", "rank", "log"]
Order = Literal["sorted", "index"]

COLUMNS = 1024
"""Most columns of a picture; more would only be thrown away by the screen."""
SHADES = 250
MISSING, KEPT, GONE = 255, 254, 253
"""Palette entries beside the shades: no unit here, and the two ends of the strip that shows what is pruned."""
STRIP = 4
"""Pixel rows of colour for one of strip, where the plan is drawn as a strip under each layer."""


def _palette(name: str) -> np.ndarray:
    palette = np.zeros((256, 3), dtype=np.uint8)
    shades = sample_colorscale(name, np.linspace(0, 1, SHADES).tolist())
    palette[:SHADES] = np.rint([unlabel_rgb(colour) for colour in shades])
    palette[GONE], palette[KEPT] = (255, 255, 255), (60, 66, 80)
    return palette


SCORES, DIFFERENCES = _palette("Cividis"), _palette("RdBu")
BY_PLAN = ("pruned by the plan", "kept by the plan")
BY_ONE = ("removed by only one of the two", "both agree")

HERE = Path(__file__).parent
SAVE_JS, OWN_JS, CSS = (
    (HERE / name).read_text(encoding="utf8") for name in ("save_picture.js", "heatmap.js", "heatmap.css")
)
JS = SAVE_JS + OWN_JS


@dataclass(frozen=True)
class Rows:
    """Scores of the units of one kind of module, and what the plan does with them, one array per layer.

    `scores` and `pruned` (bool) are None where a layer has no such module. `name` is what a unit is called.
    """

    scores: Sequence[np.ndarray | None]
    pruned: Sequence[np.ndarray | None]
    name: str

    @property
    def widest(self) -> int:
        return max((len(row) for row in self.scores if row is not None), default=0)

    def arrangement(self, layer: int, order: Order) -> np.ndarray:
        """Unit indices of a layer from left to right."""
        scores, pruned = self.scores[layer], self.pruned[layer]
        # Units pruned or kept by hand do not follow their score, so the cut goes first.
        return np.arange(len(scores)) if order == "index" else np.lexsort((scores, ~pruned))

    @property
    def bins(self) -> int:
        """Columns of the picture."""
        return max(1, min(COLUMNS, self.widest))

    def span(self, layer: int, order: Order) -> int:
        """Units that fill the whole width: by index all layers share one axis, by score every layer runs to 100 %."""
        return self.widest if order == "index" else len(self.scores[layer])

    def unit_at(self, layer: int, column: int, order: Order) -> int | None:
        """The first unit in a cell, None where the layer has none."""
        place = column * self.span(layer, order) // self.bins
        arranged = self.arrangement(layer, order)
        return int(arranged[place]) if place < len(arranged) else None

    def column_of(self, layer: int, unit: int, order: Order) -> int:
        """The first cell that shows a unit."""
        span, bins = self.span(layer, order), self.bins
        place = int(np.flatnonzero(self.arrangement(layer, order) == unit)[0])
        return -(-place * bins // span) if span < bins else ((place + 1) * bins - 1) // span


@dataclass(frozen=True)
class Scale:
    """How scores become colours: the view, the scores at both ends, and the score the plan cuts at."""

    view: View
    low: float
    high: float
    bend: float
    cut: float | None

    @classmethod
    def of(cls, everything: Sequence[Rows], view: View, cut: float | None) -> Scale:
        """One scale for several pictures, since one threshold cuts them all."""
        parts = [
            np.concatenate(present) for rows in everything if (present := [r for r in rows.scores if r is not None])
        ]
        if view == "rank" or not parts:
            return cls("rank", 0.0, 1.0, 1.0, None)
        bend = max(float(np.median([np.percentile(np.abs(part), 95) for part in parts])) / 100, 1e-12)
        if view == "log":
            low, high = min(part.min() for part in parts), max(part.max() for part in parts)
        else:
            low = min(np.percentile(part, 5) for part in parts)
            high = max(np.percentile(part, 99.5) for part in parts)
        return cls(view, float(low), float(high) if high > low else float(low) + 1.0, bend, cut)

    def fraction(self, values: np.ndarray | float) -> np.ndarray:
        """0 at the low end to 1 at the high end; NaN stays NaN."""
        low, high, values = (self._bent(np.asarray(part, dtype=np.float64)) for part in (self.low, self.high, values))
        return np.clip((values - low) / (high - low), 0, 1)

    def _bent(self, values: np.ndarray) -> np.ndarray:
        # Logarithmic away from zero on both sides: Newton scores of harmful units are negative.
        return np.sign(values) * np.log1p(np.abs(values) / self.bend) if self.view == "log" else values

    def legend(self) -> str:
        """The colour bar."""
        if self.view == "rank":
            low, high = "lowest", "highest in its layer"
        else:
            low, high = f"{'≤ ' if self.view == 'raw' else ''}{self.low:.3g}", f"{self.high:.3g}"
        mark = ""
        if self.cut is not None:
            share = float(self.fraction(self.cut)) * 100
            mark = f"<i style='left:{share:.1f}%' title='The plan cuts at {self.cut:.4g}'></i>"
        note = "" if self.cut is None else f"<span>mark: the plan cuts at {self.cut:.4g}</span>"
        return _legend(SCORES, low, high, mark, note)


def score_heatmap(
    rows: Rows, scale: Scale, *, order: Order, title: str, selected: tuple[int, int] | None = None
) -> str:
    """Layer x unit scores with what the plan prunes, at most 1024 columns (mean and minimum of each bin).

    Args:
        order: "index" as in the model, or "sorted" from lowest to highest score, with a line where the plan cuts.
        selected: (layer, unit) to ring.
    """
    bins, layers = rows.bins, len(rows.scores)
    shown, mean, lowest, share = (np.full((layers, bins), np.nan) for _ in range(4))
    cuts = np.zeros(layers)
    for layer, (scores, pruned) in enumerate(zip(rows.scores, rows.pruned, strict=True)):
        if scores is None or pruned is None or not len(scores):
            continue
        arranged = rows.arrangement(layer, order)
        colours = ranks(scores) if scale.view == "rank" else scores
        for grid, values, reduce in (
            (shown, colours, mean_of),
            (mean, scores, mean_of),
            (lowest, scores, np.fmin.reduceat),
            (share, pruned, mean_of),
        ):
            grid[layer] = binned(values[arranged], bins, rows.span(layer, order), reduce)
        cuts[layer] = pruned.mean() * bins
    strip = order == "index" and bins > 128
    lines = _staircase(cuts) if order == "sorted" else "" if strip else _crosses(share)
    cells = np.where(np.isnan(shown), MISSING, np.rint(np.nan_to_num(scale.fraction(shown)) * (SHADES - 1)))
    ring = None if selected is None else (selected[0], rows.column_of(*selected, order))
    return _figure(
        _with_strip(cells.astype(np.uint8), share) if strip else cells.astype(np.uint8),
        shape=(layers, bins),
        title=title,
        palette=SCORES,
        row_name="Layer",
        column_name=rows.name,
        ticks=_percent_ticks() if order == "sorted" else _unit_ticks(rows.widest),
        by_score=order == "sorted",
        axis=f"{rows.name}s of the layer, removed ones first, each by score" if order == "sorted" else rows.name,
        per_cell=rows.widest / bins,
        values={"score": mean, **({"lowest": lowest} if rows.widest > bins else {})},
        share=share,
        words=BY_PLAN,
        lines=lines,
        ring=ring,
        legend=scale.legend(),
        height=_height(layers),
    )


def most_apart(pairs: Sequence[tuple[Rows, Rows]]) -> float:
    """The largest difference of two ranks, each from 0 to 1 in its layer, in several pictures; 1 without any."""
    largest = [
        float(np.abs(ranks(ours) - ranks(theirs)).max())
        for first, second in pairs
        for ours, theirs in zip(first.scores, second.scores, strict=True)
        if ours is not None and theirs is not None and len(ours)
    ]
    return max(largest, default=0.0) or 1.0


def difference_heatmap(
    first: Rows,
    second: Rows,
    names: tuple[str, str],
    *,
    most: float,
    title: str,
    selected: tuple[int, int] | None = None,
) -> str:
    """Layer x unit differences of the ranks two methods give, and the units only one of them removes.

    Ranks run from 0 to 1 in every layer. Cells that hold several units show the largest difference among them.

    Args:
        first, second: what each method says of the same units.
        names: of the methods.
        most: the difference at both ends of the scale, from `most_apart`.
    """
    bins, layers = first.bins, len(first.scores)
    shown, ours, theirs, share = (np.full((layers, bins), np.nan) for _ in range(4))
    for layer, (scores, others) in enumerate(zip(first.scores, second.scores, strict=True)):
        if scores is None or others is None or not len(scores):
            continue
        rank, other = ranks(scores), ranks(others)
        apart = first.pruned[layer] != second.pruned[layer]
        for grid, values, reduce in (
            (shown, rank - other, _farthest),
            (ours, rank, mean_of),
            (theirs, other, mean_of),
            (share, apart, mean_of),
        ):
            grid[layer] = binned(values, bins, first.widest, reduce)
    strip = bins > 128
    fraction = np.clip((shown / most + 1) / 2, 0, 1)
    cells = np.where(np.isnan(shown), MISSING, np.rint(np.nan_to_num(fraction) * (SHADES - 1))).astype(np.uint8)
    largest = {"largest difference": shown} if first.widest > bins else {}
    low, high = (f"{name} ranks it higher by {most:.2f}" for name in reversed(names))
    return _figure(
        _with_strip(cells, share) if strip else cells,
        shape=(layers, bins),
        title=title,
        palette=DIFFERENCES,
        row_name="Layer",
        column_name=first.name,
        ticks=_unit_ticks(first.widest),
        by_score=False,
        axis=first.name,
        per_cell=first.widest / bins,
        values={f"rank by {names[0]}": ours, f"rank by {names[1]}": theirs, **largest},
        share=share,
        words=BY_ONE,
        lines="" if strip else _crosses(share),
        ring=None if selected is None else (selected[0], first.column_of(*selected, "index")),
        legend=_legend(DIFFERENCES, low, high),
        height=_height(layers),
    )


def _figure(
    cells: np.ndarray,
    *,
    shape: tuple[int, int],
    title: str,
    palette: np.ndarray,
    row_name: str,
    column_name: str,
    ticks: Sequence[tuple[float, str]],
    by_score: bool,
    axis: str,
    per_cell: float,
    values: dict[str, np.ndarray],
    share: np.ndarray,
    words: tuple[str, str],
    lines: str,
    ring: tuple[int, int] | None,
    legend: str,
    height: int,
) -> str:
    rows, bins = shape
    step = max(1, -(-rows * 16 // height))
    labels = "".join(f"<span style='top:{(row + 0.5) / rows * 100:.2f}%'>{row}</span>" for row in range(0, rows, step))
    marks = "".join(f"<span style='left:{place * 100:.2f}%'>{escape(tick)}</span>" for place, tick in ticks)
    data = {
        "rows": rows,
        "columns": bins,
        "row": row_name,
        "column": column_name,
        "perCell": per_cell,
        "sorted": by_score,
        "values": {name: quantised(grid) for name, grid in values.items()},
        "share": encoded(np.where(np.isnan(share), 255, np.rint(np.nan_to_num(share) * 254)).astype(np.uint8)),
        "words": words,
        "ring": ring,
    }
    label = f"{title}. {rows} rows by {bins} columns. Click a cell or walk with the arrow keys to select it."
    return (
        f"<figure class='np-heat' tabindex='0' role='group' aria-label='{escape(label)}'"
        f" data-heat='{escape(json.dumps(data, separators=(',', ':')))}'>"
        f"<figcaption><b>{escape(title)}</b><span class='np-heat-save'>"
        "<button type='button' data-save='png'>PNG</button><button type='button' data-save='svg'>SVG</button>"
        "</span></figcaption>"
        f"<div class='np-heat-body'><div class='np-heat-y' aria-hidden='true'>{labels}</div>"
        f"<div class='np-heat-plot' style='height:{height}px'><img alt='' src='{_png(cells, palette)}'>"
        f"<svg viewBox='0 0 {bins} {rows}' preserveAspectRatio='none' aria-hidden='true'>"
        f"<path class='np-under' d='{lines}'/><path class='np-over' d='{lines}'/>"
        "<path class='np-ring-under' d=''/><path class='np-ring' d=''/></svg>"
        "<div class='np-heat-tip' role='status'></div></div>"
        f"<div class='np-heat-x' aria-hidden='true'>{marks}</div></div>"
        f"<div class='np-heat-axis' aria-hidden='true'><span>{escape(row_name)} ↓</span>"
        f"<span>{escape(axis)} →</span></div>"
        f"{legend}</figure>"
    )


def _legend(palette: np.ndarray, low: str, high: str, mark: str = "", note: str = "") -> str:
    image = _png(np.arange(SHADES, dtype=np.uint8)[None], palette)
    return (
        f"<div class='np-legend'><span>{escape(low)}</span><div><img alt='colour scale' src='{image}'>{mark}</div>"
        f"<span>{escape(high)}</span>{note}</div>"
    )


def _height(layers: int) -> int:
    return int(np.clip(26 * layers, 180, 560))


def _percent_ticks() -> list[tuple[float, str]]:
    return [(place, f"{place:.0%}") for place in np.linspace(0, 1, 6).tolist()]


def _unit_ticks(units: int) -> list[tuple[float, str]]:
    """At most about nine round unit numbers and where they stand, 0 to 1."""
    step = next(s * 10**e for e in range(9) for s in (1, 2, 5) if units / (s * 10**e) <= 9)
    return [((unit + 0.5) / units, str(unit)) for unit in range(0, units, step)]


def _staircase(cuts: np.ndarray) -> str:
    steps = [f"{'ML'[layer > 0]}{cut:.3f} {layer}V{layer + 1}" for layer, cut in enumerate(cuts)]
    return "".join(steps)


def _crosses(share: np.ndarray) -> str:
    """A frame with a cross around every cell that goes."""
    return "".join(
        f"M{c} {r}h1v1h-1zM{c + 0.25} {r + 0.25}l.5 .5M{c + 0.75} {r + 0.25}l-.5 .5"
        for r, c in zip(*np.nonzero(np.nan_to_num(share) >= 0.5), strict=True)
    )


def _with_strip(cells: np.ndarray, share: np.ndarray) -> np.ndarray:
    strip = np.where(np.isnan(share), MISSING, np.where(np.nan_to_num(share) >= 0.5, GONE, KEPT)).astype(np.uint8)
    tall = np.repeat(cells, STRIP + 1, axis=0)
    tall[STRIP :: STRIP + 1] = strip
    return tall


def binned(row: np.ndarray, bins: int, span: int, reduce: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """`reduce` over `bins` nearly equal stretches of `span` places, NaN where the row has ended."""
    places = np.full(span, np.nan)
    places[: len(row)] = row
    starts = np.arange(bins) * span // bins
    return places[starts] if span <= bins else reduce(places, starts)


def mean_of(places: np.ndarray, starts: np.ndarray) -> np.ndarray:
    present = np.isfinite(places)
    counts = np.add.reduceat(present.astype(np.float64), starts)
    sums = np.add.reduceat(np.where(present, places, 0.0), starts)
    return np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)


def _farthest(places: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The value farthest from zero."""
    high, low = np.fmax.reduceat(places, starts), np.fmin.reduceat(places, starts)
    return np.where(np.abs(high) >= np.abs(low), high, low)


def ranks(row: np.ndarray) -> np.ndarray:
    """Ranks scaled to 0 (lowest) to 1."""
    places = np.empty(len(row))
    places[np.argsort(row, kind="stable")] = np.arange(len(row))
    return places / max(len(row) - 1, 1)


def _png(cells: np.ndarray, palette: np.ndarray) -> str:
    """A data URL of palette indices."""
    image = Image.fromarray(np.ascontiguousarray(cells), mode="P")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=MISSING, compress_level=6)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def quantised(grid: np.ndarray) -> dict[str, Any]:
    """Values to five digits of their range, for the tooltip; 65535 is missing."""
    finite = grid[np.isfinite(grid)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    span = high - low or 1.0
    steps = np.where(np.isfinite(grid), np.rint((np.nan_to_num(grid) - low) / span * 65534), 65535)
    return {"low": low, "span": span, "data": encoded(steps.astype("<u2"))}


def encoded(values: np.ndarray) -> str:
    """The bytes of an array as text."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
