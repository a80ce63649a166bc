"""Charts of scores and plans: pure functions that know neither models nor gradio."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from numprune.ui.chart_style import BLUE, INK, ORANGE, SERIES, finish, tint, token

ATTENTION, MLP = BLUE, ORANGE
BINS = 60
HEADS = 8
"""Most attention maps in one picture."""


def score_distribution(attention: np.ndarray, mlp: np.ndarray, threshold: float | None) -> go.Figure:
    """How the scores of all units are distributed, and where the plan cuts.

    Scores have a long tail, a hundred times as long as the rest is wide: what lies outside the bulk is counted in the
    outermost bins. Prices, which are never negative and span decades, have a logarithmic axis.
    """
    kinds = [("attention", attention, ATTENTION, "solid"), ("MLP", mlp, MLP, "dash")]
    parts = [values for _, values, _, _ in kinds if len(values)]
    low, high = _bulk(parts)
    logarithmic = _decades(parts)
    if logarithmic:
        low = min(float(part[part > 0].min()) for part in parts)
    if threshold is not None and not (logarithmic and threshold <= 0):
        low, high = min(low, threshold), max(high, threshold)
    edges = np.geomspace(low, high, BINS + 1) if logarithmic else np.linspace(low, high, BINS + 1)
    figure = go.Figure()
    for name, values, colour, dash in kinds:
        if not len(values):
            continue
        share = np.histogram(np.clip(values, low, high), edges)[0] / len(values)
        figure.add_scatter(
            # A step runs from its edge to the next one, so the last is drawn by repeating it.
            x=edges.astype(np.float32),
            y=np.append(share, share[-1]).astype(np.float32),
            customdata=np.append(edges[1:], high).astype(np.float32),
            name=f"{name} ({len(values):,} units)",
            mode="lines",
            line={"color": colour, "dash": dash, "width": 1.8, "shape": "hv"},
            fill="tozeroy",
            fillcolor=tint(colour, 0.18),
            hovertemplate="%{y:.2%} of the units score %{x:.4g} to %{customdata:.4g}<extra>" + name + "</extra>",
        )
    if threshold is not None and threshold >= low:
        figure.add_shape(x0=threshold, x1=threshold, y0=0, y1=1, yref="paper", line={"color": INK, "dash": "dash"})
        # A logarithmic axis takes the places of its lines as they are, and those of its texts as logarithms.
        place = float(np.log10(threshold)) if logarithmic else threshold
        figure.add_annotation(x=place, y=1, yref="paper", text="cut", showarrow=False, yanchor="bottom")
    outside = sum(int(((part < low) | (part > high)).sum()) for part in parts)
    title = "score" + (_small(f"{outside:,} units farther out are in the outermost bins") if outside else "")
    axis = {"type": "log", "dtick": 1} if logarithmic else {}
    figure.update_xaxes(title=title, showgrid=False, zeroline=False, tickformat=".3~g", **axis)
    figure.update_yaxes(title="share of units per bin", tickformat=".3~%", rangemode="tozero")
    figure.update_layout(hovermode="x")
    finish(figure, 340)
    return figure


def layer_profile(attention: Sequence[np.ndarray | None], mlp: Sequence[np.ndarray | None]) -> go.Figure:
    """Median score of every layer, with bars from its 5th to its 95th percentile.

    Not the mean: it is 1 - ratio in every layer where scores are solved for with a budget. Not the extremes: a single
    channel may lie hundreds of times farther out than all others.
    """
    figure = go.Figure()
    layers = np.arange(len(attention), dtype=np.float32)
    for shift, (name, rows), (colour, dash, symbol) in zip(
        (-0.08, 0.08), (("attention", attention), ("MLP", mlp)), SERIES, strict=False
    ):
        lowest, low, median, high, highest = _percentiles(rows, (0, 5, 50, 95, 100))
        if np.isnan(median).all():
            continue
        figure.add_scatter(
            x=layers + np.float32(shift),
            y=median,
            error_y={
                "type": "data",
                "symmetric": False,
                "array": high - median,
                "arrayminus": median - low,
                "color": tint(colour, 0.55),
                "thickness": 1.5,
                "width": 3,
            },
            customdata=np.stack([layers, low, high, lowest, highest], axis=1),
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"color": colour, "symbol": symbol, "size": 8},
            hovertemplate="Layer %{customdata[0]:.0f}: median score %{y:.4g}<br>"
            "nine in ten units %{customdata[1]:.4g} to %{customdata[2]:.4g}<br>"
            "all units %{customdata[3]:.4g} to %{customdata[4]:.4g}<extra>" + name + "</extra>",
        )
    figure.update_xaxes(title="layer", showgrid=False, zeroline=False, dtick=1 if len(attention) <= 16 else None)
    axis = {"type": "log", "dtick": 1} if _decades([row for row in (*attention, *mlp) if row is not None]) else {}
    figure.update_yaxes(title="median score, 5 to 95 %", zeroline=False, tickformat=".3~g", **axis)
    finish(figure, 360)
    return figure


def layer_row(scores: np.ndarray, pruned: np.ndarray, selected: int | None, unit: str) -> go.Figure:
    """The score of every unit of one layer, kept or pruned; scores far from the others stand at the edge.

    Args:
        pruned: of the same shape, bool.
        selected: the unit to ring.
        unit: what a unit is called, such as "channel".
    """
    low, high = _bulk([scores])
    room = 0.06 * (high - low)
    shown = np.clip(scores, low - room, high + room).astype(np.float32)
    figure = go.Figure()
    size = 5 if len(scores) > 256 else 8
    for name, units, colour, symbol in (
        ("kept", np.flatnonzero(~pruned), BLUE, "circle"),
        ("pruned by the plan", np.flatnonzero(pruned), ORANGE, "x"),
    ):
        figure.add_scatter(
            x=units.astype(np.float32),
            y=shown[units],
            customdata=scores[units].astype(np.float32),
            name=f"{name} ({len(units):,})",
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": size, "opacity": 0.8, "line": {"color": colour}},
            hovertemplate=unit + " %{x:.0f}: score %{customdata:.4g}<extra>" + name + "</extra>",
        )
    if selected is not None:
        figure.add_scatter(
            x=np.array([selected], dtype=np.float32),
            y=shown[[selected]],
            name=f"{unit} {selected}",
            mode="markers",
            marker={"symbol": "circle-open", "size": 18, "color": "#ff4fa3", "line": {"width": 3}},
            hoverinfo="skip",
        )
    outside = int(((scores < low - room) | (scores > high + room)).sum())
    title = unit + (_small(f"{outside:,} far from the others are drawn at the edge") if outside else "")
    figure.update_xaxes(title=title, showgrid=False, zeroline=False, tickformat=",d")
    figure.update_yaxes(title="score", zeroline=False, tickformat=".3~g", range=[low - 1.8 * room, high + 1.8 * room])
    finish(figure, 360)
    return figure


def ratio_bars(
    attention: Sequence[float | None],
    mlp: Sequence[float | None],
    locked_attention: Sequence[bool],
    locked_mlp: Sequence[bool],
) -> go.Figure:
    """Pruned share of every layer's modules, layer 0 at the top; hatched where it was set by hand.

    Args:
        attention, mlp: shares by layer, None for a layer without such a module.
    """
    figure = go.Figure()
    layers = np.arange(len(attention), dtype=np.float32)
    for name, ratios, locked, colour, filled in (
        ("attention", attention, locked_attention, ATTENTION, 0.95),
        ("MLP", mlp, locked_mlp, MLP, 0.35),
    ):
        figure.add_bar(
            x=np.array(ratios, dtype=np.float32),
            y=layers,
            orientation="h",
            offsetgroup=name,
            text=["<br>set by hand" if lock else "" for lock in locked],
            textposition="none",
            marker={
                "color": tint(colour, filled),
                "line": {"color": colour, "width": 1.5},
                "pattern": {
                    "shape": ["x" if lock else "" for lock in locked],
                    "fgcolor": INK if filled < 0.5 else "#ffffff",
                    "size": 6,
                },
            },
            hovertemplate="Layer %{y}: %{x:.1%} of the units pruned%{text}<extra>" + name + "</extra>",
            showlegend=False,
        )
    by_hand = any(locked_attention) or any(locked_mlp)
    for name, colour, filled, pattern in (
        ("attention", ATTENTION, 0.95, ""),
        ("MLP", MLP, 0.35, ""),
        *([("set by hand", INK, 0.0, "x")] if by_hand else []),
    ):
        # A bar's own entry would look like its first layer, hatched or not.
        figure.add_bar(
            x=np.array([np.nan], dtype=np.float32),
            y=layers[:1],
            orientation="h",
            offsetgroup="MLP",
            name=name,
            marker={
                "color": tint(colour, filled),
                "line": {"color": colour, "width": 1.5},
                "pattern": {"shape": pattern, "fgcolor": INK},
            },
            hoverinfo="skip",
        )
    figure.update_layout(
        barmode="group", bargap=0.3, bargroupgap=0.08, legend={"traceorder": "normal", "itemclick": False}
    )
    figure.update_xaxes(title="share of the module's units pruned", range=[0, 1], tickformat=".0%", zeroline=False)
    figure.update_yaxes(
        title="layer",
        range=[len(attention) - 0.5, -0.5],
        dtick=1 if len(attention) <= 40 else None,
        showgrid=False,
        zeroline=False,
    )
    finish(figure, int(np.clip(130 + 24 * len(attention), 260, 1400)))
    return figure


def attention_pattern(tokens: Sequence[str], weights: np.ndarray, names: Sequence[str]) -> go.Figure:
    """What every token attends to, one map per head, the first token on top; at most 8 heads are drawn.

    Args:
        weights: (heads, tokens, tokens), rows are queries and sum to 1.
        names: of the heads.
    """
    shown = weights[:HEADS]
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    # Numbered, since an axis of names needs each to be another one.
    labels = [f"{token(each)} {position}" for position, each in enumerate(tokens)]
    side = int(np.clip(22 * len(tokens), 220, 520 if columns == 1 else 300))
    height = rows * side + 30 * (rows - 1) + 190
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_xaxes="all",
        shared_yaxes="all",
        subplot_titles=[escape(name) for name in names[: len(shown)]],
        horizontal_spacing=0.04,
        vertical_spacing=30 / (height - 190) if rows > 1 else 0,
    )
    above = np.triu(np.ones(shown.shape[1:], dtype=bool), 1)
    for index, map_ in enumerate(shown):
        figure.add_heatmap(
            z=np.where(above, np.nan, map_).astype(np.float32),
            x=labels,
            y=labels,
            coloraxis="coloraxis",
            hoverongaps=False,
            hovertemplate="“%{y}” attends to “%{x}”: %{z:.1%}<extra></extra>",
            row=index // columns + 1,
            col=index % columns + 1,
        )
    figure.update_xaxes(type="category", tickangle=-90, showgrid=False, tickfont={"size": 10})
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, tickfont={"size": 10})
    figure.update_xaxes(title="attended to", row=rows)
    figure.update_yaxes(title="token", col=1)
    figure.update_annotations(font={"size": 12})
    finish(figure, height)
    left_out = len(weights) - len(shown)
    figure.update_layout(
        margin={"l": 84, "t": 52, "b": 160},
        coloraxis={
            "colorscale": "Cividis",
            "cmin": 0,
            "cmax": 1,
            "colorbar": {
                "title": {
                    "text": "attention weight" + (f" ({left_out} more heads are not drawn)" if left_out else ""),
                    "side": "top",
                },
                "orientation": "h",
                "thickness": 10,
                "len": 0.6,
                "y": -100 / (height - 190),
                "yanchor": "top",
                "tickformat": ".0%",
            },
        },
    )
    return figure


def _decades(parts: Sequence[np.ndarray]) -> bool:
    """Whether scores are prices: none is negative, and most span decades."""
    values = np.concatenate(parts) if parts else np.empty(0)
    positive = values[values > 0]
    if len(positive) < max(2, 0.5 * len(values)) or (values < 0).any():
        return False
    low, high = np.percentile(positive, [5, 95])
    return bool(high > 20 * low)


def _bulk(parts: Sequence[np.ndarray]) -> tuple[float, float]:
    """Where most of the scores lie: from the lowest 5th to the highest 99.5th percentile of all parts."""
    low = min((float(np.percentile(part, 5)) for part in parts), default=0.0)
    high = max((float(np.percentile(part, 99.5)) for part in parts), default=1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _percentiles(rows: Sequence[np.ndarray | None], shares: Sequence[float]) -> np.ndarray:
    """Percentiles of the scores by layer, (shares, layers), NaN where there are none."""
    found = np.full((len(shares), len(rows)), np.nan, dtype=np.float32)
    for layer, row in enumerate(rows):
        if row is not None and len(row):
            found[:, layer] = np.percentile(row, shares)
    return found


def _small(note: str) -> str:
    """A second, smaller line of an axis title."""
    return f"<br><span style='font-size:11px'>{note}</span>"
