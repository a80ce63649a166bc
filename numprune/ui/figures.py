"""Pictures from tables: pure functions that know neither models nor gradio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

View = Literal["rank", "raw"]
Order = Literal["sorted", "index"]

COLUMNS = 1024
"""Most columns of a channel heatmap; more would only be thrown away by the screen."""
INK = "#8a8f98"
"""Mid-grey for text and axes: readable on white and on black."""
LIGHT, DARK = "#ffffff", "#111111"
SCALE = "Cividis"


def attention_heatmap(
    scores: Sequence[np.ndarray | None], pruned: Sequence[np.ndarray | None], *, view: View = "raw", unit: str = "Head"
) -> go.Figure:
    """Layer x head scores, with a cross on every head the plan prunes.

    Args:
        scores: one array per layer, None for a layer without attention.
        pruned: of the same shapes, bool.
        view: "raw" scores, clipped for colour at the 5th percentile; "rank" within the layer, 0 to 1.
        unit: "Head" or "KV group".
    """
    z, values, cut = _grid(scores, view), _grid(scores, "raw"), _grid(pruned, "raw")
    width = z.shape[1]
    figure = go.Figure(_heatmap(z, np.arange(width), values, cut, unit, view))
    rows, columns = np.nonzero(cut == 1)
    figure.add_scatter(
        x=columns,
        y=rows,
        mode="markers",
        marker={"symbol": "x", "size": 10, "color": LIGHT, "line": {"color": DARK, "width": 1.2}},
        hoverinfo="skip",
        name="pruned by the plan",
    )
    _layout(figure, len(scores), unit)
    figure.update_xaxes(dtick=1 if width <= 32 else None, range=[-0.5, width - 0.5])
    return figure


def channel_heatmap(
    scores: Sequence[np.ndarray | None],
    pruned: Sequence[np.ndarray | None],
    *,
    view: View = "raw",
    order: Order = "sorted",
) -> go.Figure:
    """Layer x channel scores, binned to at most 1024 columns.

    With order "sorted" every layer runs from its lowest to its highest score and a line marks where the plan
    cuts; with "index" channels stand where they are in the model and those the plan prunes are left blank.
    """
    bins = min(COLUMNS, max((len(row) for row in scores if row is not None), default=1))
    z, values, share = (np.full((len(scores), bins), np.nan, dtype=np.float32) for _ in range(3))
    cuts = np.zeros(len(scores))
    for layer, (row, gone) in enumerate(zip(scores, pruned, strict=True)):
        if row is None or gone is None:
            continue
        shown = _ranks(row) if view == "rank" else row
        if order == "sorted":
            # Units pruned or kept by hand do not follow their score, so the cut goes first.
            arrangement = np.lexsort((row, ~gone))
            shown, row, gone = shown[arrangement], row[arrangement], gone[arrangement]
        else:
            shown = np.where(gone, np.nan, shown)
        z[layer], values[layer], share[layer] = (_binned(part, bins) for part in (shown, row, gone))
        cuts[layer] = gone.mean()
    x = (np.arange(bins) + 0.5) / bins * (100 if order == "sorted" else max(map(len, filter(_present, scores))))
    figure = go.Figure(_heatmap(z, x, values, share, "Channel", view))
    if order == "sorted":
        edge_x, edge_y = np.repeat(cuts * 100, 2), np.arange(len(scores)).repeat(2) + np.tile([-0.5, 0.5], len(scores))
        for colour, width in ((DARK, 4), (LIGHT, 2)):
            figure.add_scatter(
                x=edge_x, y=edge_y, mode="lines", line={"color": colour, "width": width}, hoverinfo="skip", name="cut"
            )
    _layout(figure, len(scores), "Channels of the layer, lowest score first (%)" if order == "sorted" else "Channel")
    return figure


def error_bars(report: pd.DataFrame) -> go.Figure:
    """Relative output error of every module before and after compensation, from PruningReport.to_pandas()."""
    touched = report[report["kept"] < report["units"]]
    names = [f"{row.layer} {'attn' if row.module == 'attention' else 'mlp'}" for row in touched.itertuples()]
    figure = go.Figure()
    for column, label, colour, pattern in (
        ("error_before", "without compensation", "#b5651d", "/"),
        ("error_after", "as pruned", "#2a6f97", ""),
    ):
        figure.add_bar(
            x=names,
            y=touched[column],
            name=label,
            marker={"color": colour, "pattern": {"shape": pattern}},
            hovertemplate="%{x}: %{y:.4f}<extra>" + label + "</extra>",
        )
    figure.update_layout(barmode="group", legend={"orientation": "h", "y": -0.2, "yanchor": "top"})
    figure.update_yaxes(title="relative output error", gridcolor="rgba(138,143,152,0.25)", rangemode="tozero")
    _base(figure, 320)
    return figure


def _heatmap(z: np.ndarray, x: np.ndarray, values: np.ndarray, share: np.ndarray, unit: str, view: View) -> go.Heatmap:
    finite = z[np.isfinite(z)]
    if view == "rank" or not finite.size:
        low, high = 0.0, 1.0
    else:
        low, high = (float(edge) for edge in np.percentile(finite, [5, 99.5]))
    return go.Heatmap(
        z=z.astype(np.float32),
        x=x,
        zmin=low,
        zmax=high if high > low else low + 1,
        colorscale=SCALE,
        customdata=np.dstack([values, share]).astype(np.float32),
        hovertemplate="Layer %{y}, "
        + unit.lower()
        + " %{x:.4~g}<br>score %{customdata[0]:.4f}<br>%{customdata[1]:.0%} pruned by the plan"
        "<extra></extra>",
        colorbar={
            "title": {"text": "rank" if view == "rank" else "score", "side": "top"},
            "thickness": 10,
            "len": 1.0,
        },
        hoverongaps=False,
    )


def _layout(figure: go.Figure, layers: int, x_title: str) -> None:
    figure.update_xaxes(title=x_title, showgrid=False, zeroline=False)
    figure.update_yaxes(
        title="Layer",
        autorange=False,
        range=[layers - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
        dtick=1 if layers <= 16 else None,
    )
    figure.update_layout(showlegend=False)
    _base(figure, int(np.clip(120 + 26 * layers, 320, 720)))


def _base(figure: go.Figure, height: int) -> None:
    figure.update_layout(
        height=height,
        margin={"l": 46, "r": 8, "t": 24, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12},
        hoverlabel={"font": {"color": "#ffffff"}, "bgcolor": "#222222"},
    )


def _present(row: np.ndarray | None) -> bool:
    return row is not None


def _grid(rows: Sequence[np.ndarray | None], view: View) -> np.ndarray:
    """Rows of unequal length as one matrix, missing cells NaN."""
    width = max((len(row) for row in rows if row is not None), default=1)
    grid = np.full((len(rows), width), np.nan)
    for layer, row in enumerate(rows):
        if row is not None:
            grid[layer, : len(row)] = _ranks(row) if view == "rank" else row
    return grid


def _ranks(row: np.ndarray) -> np.ndarray:
    """Ranks scaled to 0 (lowest) to 1."""
    return np.argsort(np.argsort(row, kind="stable"), kind="stable") / max(len(row) - 1, 1)


def _binned(row: np.ndarray, bins: int) -> np.ndarray:
    """Means of `bins` nearly equal stretches; NaN (left out) entries do not count."""
    row = row.astype(np.float64)
    if len(row) <= bins:
        # A layer with fewer channels than the widest one is stretched, so that all rows span the picture.
        return row[np.arange(bins) * len(row) // bins]
    edges = np.arange(bins) * len(row) // bins
    present = np.isfinite(row)
    sums = np.add.reduceat(np.where(present, row, 0.0), edges)
    counts = np.add.reduceat(present.astype(np.float64), edges)
    return np.divide(sums, counts, out=np.full(bins, np.nan), where=counts > 0)
