"""Charts from tables and arrays: pure functions that know neither models nor gradio."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

INK = "#7b8089"
"""Mid-grey for text and axes: readable on white and on black."""
FAINT = "rgba(123,128,137,0.25)"
CLEAR = "rgba(0,0,0,0)"
BLUE, ORANGE, GREEN, PURPLE = "#3b8bbd", "#c77328", "#3a9a78", "#ad6bb0"
"""Told apart by colour-blind eyes, and as far from white as from black."""
ATTENTION, MLP = BLUE, ORANGE
SERIES = (
    (BLUE, "solid", "circle"),
    (ORANGE, "dash", "diamond"),
    (GREEN, "dot", "square"),
    (PURPLE, "dashdot", "triangle-up"),
)
"""Colour, dash and symbol of curves that are compared."""
BINS = 60
HEADS = 8
"""Most attention maps in one picture."""


def score_distribution(attention: np.ndarray, mlp: np.ndarray, threshold: float | None) -> go.Figure:
    """How the scores of all units are distributed, and where the plan cuts.

    Scores have a long tail on the left, a hundred times as long as the rest is wide; what lies outside the bulk is
    counted in the outermost bins.
    """
    kinds = [("attention", attention, ATTENTION, "solid"), ("MLP", mlp, MLP, "dash")]
    parts = [values for _, values, _, _ in kinds if len(values)]
    low, high = _bulk(parts)
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    edges = np.linspace(low, high, BINS + 1)
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
            fillcolor=_tint(colour, 0.18),
            hovertemplate="%{y:.2%} of the units score %{x:.4g} to %{customdata:.4g}<extra>" + name + "</extra>",
        )
    if threshold is not None:
        figure.add_vline(
            threshold, line={"color": INK, "dash": "dash", "width": 2}, annotation={"text": "cut", "yanchor": "bottom"}
        )
    outside = sum(int(((part < low) | (part > high)).sum()) for part in parts)
    title = "score" + (_small(f"{outside:,} units farther out are in the outermost bins") if outside else "")
    figure.update_xaxes(title=title, showgrid=False, zeroline=False, tickformat=".3~g")
    figure.update_yaxes(title="share of units per bin", tickformat=".3~%", rangemode="tozero")
    figure.update_layout(hovermode="x")
    _base(figure, 340)
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
                "color": _tint(colour, 0.55),
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
    figure.update_yaxes(title="median score, 5 to 95 %", zeroline=False, tickformat=".3~g")
    _base(figure, 360)
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
    _base(figure, 360)
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
                "color": _tint(colour, filled),
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
                "color": _tint(colour, filled),
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
    _base(figure, int(np.clip(130 + 24 * len(attention), 260, 1400)))
    return figure


def error_bars(report: pd.DataFrame) -> go.Figure:
    """Relative output error of every module before and after compensation, from PruningReport.to_pandas()."""
    touched = report[report["kept"] < report["units"]]
    names = [f"{row.layer} {'attn' if row.module == 'attention' else 'mlp'}" for row in touched.itertuples()]
    figure = go.Figure()
    for column, label, colour, pattern in (
        ("error_before", "without compensation", ORANGE, "/"),
        ("error_after", "as pruned", BLUE, ""),
    ):
        figure.add_bar(
            x=names,
            y=touched[column].to_numpy(np.float32),
            name=label,
            marker={"color": colour, "pattern": {"shape": pattern}},
            hovertemplate="%{x}: relative output error %{y:.4f}<extra>" + label + "</extra>",
        )
    figure.update_layout(barmode="group")
    figure.update_xaxes(title="layer and module", type="category", showgrid=False)
    figure.update_yaxes(title="relative output error", rangemode="tozero")
    _base(figure, 340)
    return figure


def divergence_chart(tokens: Sequence[str], curves: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> go.Figure:
    """KL divergence from the dense model along a text, marked where the likeliest token is another one.

    Args:
        tokens: the predicted tokens.
        curves: (variant, KL in nats, whether the likeliest tokens agree) by position. The vertical axis is a square
            root: zero has a place on it, and small values are told apart.
    """
    figure = go.Figure()
    names = [_token(token) for token in tokens]
    # Of two models that agree only rounding is left, which is not worth magnifying.
    most = max([1e-3, *(float(kl.max()) for _, kl, _ in curves if len(kl))])
    for index, (name, kl, agree) in enumerate(curves):
        colour, dash, symbol = SERIES[index % len(SERIES)]
        # KL is never negative; rounding can make it so.
        height = np.sqrt(np.maximum(kl, 0)).astype(np.float32)
        other = np.flatnonzero(~np.asarray(agree, dtype=bool))
        figure.add_scatter(
            x=np.arange(len(kl), dtype=np.float32),
            y=height,
            customdata=np.asarray(kl, dtype=np.float32),
            text=names,
            name=escape(name),
            legendgroup=str(index),
            mode="lines",
            line={"color": colour, "dash": dash, "width": 1.4},
            hovertemplate="Token %{x:.0f} “%{text}”: KL %{customdata:.4f} nats<extra>" + escape(name) + "</extra>",
        )
        figure.add_scatter(
            x=other.astype(np.float32),
            y=height[other],
            name=f"likeliest token differs ({len(other) / max(len(kl), 1):.0%})",
            legendgroup=str(index),
            mode="markers",
            marker={"color": colour, "symbol": f"{symbol}-open", "size": 7, "line": {"width": 1.5}},
            hoverinfo="skip",
        )
    ticks = _sqrt_ticks(most)
    figure.update_xaxes(title="position in the text (token)", showgrid=False, zeroline=False)
    figure.update_layout(hovermode="x")
    figure.update_yaxes(
        title="KL(dense, pruned), nats",
        tickvals=np.sqrt(ticks),
        ticktext=[f"{tick:g}" for tick in ticks.tolist()],
        range=[0, float(np.sqrt(most)) * 1.06],
    )
    _base(figure, 380)
    return figure


def sweep_chart(table: pd.DataFrame) -> go.Figure:
    """Speed and memory against ratio, relative to the lowest ratio in the table, and perplexity where it is known.

    Args:
        table: columns ratio, decode, decode_low, decode_high, prefill, prefill_low, prefill_high (tokens/s), weights
            (bytes), kv (bytes per token), perplexity (may be NaN).
    """
    table = table.sort_values("ratio")
    base, ratio = table.iloc[0], table["ratio"].to_numpy(np.float32)
    known = table["perplexity"].notna().to_numpy()
    figure = make_subplots(
        rows=2 if known.any() else 1,
        cols=2,
        specs=[[{}, {}], *([[{"colspan": 2}, None]] if known.any() else [])],
        horizontal_spacing=0.2,
        vertical_spacing=0.18,
    )
    for column, (colour, dash, symbol) in zip(("decode", "prefill"), SERIES, strict=False):
        speed, low, high = (table[column + end].to_numpy(np.float64) for end in ("", "_low", "_high"))
        one = float(base[column]) or np.nan
        figure.add_scatter(
            x=ratio,
            y=(speed / one).astype(np.float32),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": ((high - speed) / one).astype(np.float32),
                "arrayminus": ((speed - low) / one).astype(np.float32),
                "color": colour,
                "thickness": 1.2,
                "width": 4,
            },
            customdata=np.stack([speed, low, high], axis=1).astype(np.float32),
            name=column,
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"color": colour, "symbol": symbol, "size": 8},
            hovertemplate="ratio %{x:.0%}: %{y:.2f}x<br>%{customdata[0]:,.1f} tokens/s"
            " (%{customdata[1]:,.1f} to %{customdata[2]:,.1f})<extra>" + column + "</extra>",
            row=1,
            col=1,
        )
    for column, name, unit, scale, (colour, dash, symbol) in zip(
        ("weights", "kv"), ("weights", "KV cache"), ("MB", "kB per token"), (1e6, 1e3), SERIES[2:], strict=True
    ):
        size = table[column].to_numpy(np.float64)
        figure.add_scatter(
            x=ratio,
            y=(size / (float(base[column]) or np.nan)).astype(np.float32),
            customdata=(size / scale).astype(np.float32),
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": 2},
            marker={"color": colour, "symbol": symbol, "size": 8},
            hovertemplate="ratio %{x:.0%}: %{y:.2f}x<br>%{customdata:,.4~g} " + unit + "<extra>" + name + "</extra>",
            row=1,
            col=2,
        )
    figure.add_hline(1, line={"color": INK, "width": 1}, row=1)
    if known.any():
        figure.add_scatter(
            x=ratio[known],
            y=table["perplexity"].to_numpy(np.float32)[known],
            name="perplexity",
            mode="lines+markers",
            line={"color": INK, "width": 2},
            marker={"color": INK, "symbol": "x", "size": 8},
            hovertemplate="ratio %{x:.0%}: perplexity %{y:.3f}<extra></extra>",
            row=2,
            col=1,
        )
        figure.update_yaxes(title="perplexity", tickformat=".3~g", row=2, col=1)
    room = 0.04 * float(ratio.max() - ratio.min()) or 0.02
    figure.update_xaxes(
        title="share pruned",
        tickformat=".0%",
        nticks=5,
        tickangle=0,
        showgrid=False,
        zeroline=False,
        range=[float(ratio.min()) - room, float(ratio.max()) + room],
    )
    against = f", ratio {base['ratio']:.0%} = 1"
    figure.update_yaxes(title=f"speed{against}", rangemode="tozero", tickformat=".2~f", row=1, col=1)
    figure.update_yaxes(title=f"memory{against}", rangemode="tozero", tickformat=".2~f", row=1, col=2)
    _base(figure, 640 if known.any() else 380)
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
    labels = [f"{_token(token)} {position}" for position, token in enumerate(tokens)]
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
    _base(figure, height)
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


def sensitivity_curves(table: pd.DataFrame) -> go.Figure:
    """Rise of the calibration loss when one module alone is pruned, from Sensitivity.to_pandas().

    One line a module, attention solid and MLP dashed, first layers dark; modules that cost nothing lie flat. The
    vertical axis is a square root, so that one sacred module does not flatten all others.
    """
    figure = go.Figure()
    rise = table["loss_increase"].to_numpy()
    ticks = _sqrt_ticks(max(1e-3, float(rise.max())))
    layers = max(int(table["layer"].max()), 1)
    for (layer, module), curve in table.groupby(["layer", "module"], sort=True):
        colour = sample_colorscale("Viridis", [0.9 * layer / layers])[0]
        name = f"{layer} {'attn' if module == 'attention' else 'mlp'}"
        figure.add_scatter(
            x=curve["share"].to_numpy(np.float32),
            y=_signed_sqrt(curve["loss_increase"].to_numpy()).astype(np.float32),
            customdata=curve[["parameters_removed", "loss_increase"]].to_numpy(np.float32),
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": "solid" if module == "attention" else "dash", "width": 1.6},
            marker={"size": 6, "symbol": "circle" if module == "attention" else "diamond"},
            hovertemplate="%{x:.0%} of what may go, %{customdata[0]:,.0f} parameters: %{customdata[1]:+.4f} nats<extra>"
            + name
            + "</extra>",
        )
    figure.update_xaxes(title="share of the module removed", tickformat=".0%")
    figure.update_yaxes(
        title="rise of the calibration loss, nats a token",
        tickvals=np.sqrt(ticks),
        ticktext=[f"{tick:g}" for tick in ticks.tolist()],
    )
    _base(figure, 380)
    return figure


def methods_chart(table: pd.DataFrame, measure: str, *, paper: pd.DataFrame | None = None) -> go.Figure:
    """What every method loses against the ratio, with lowest and highest over the seeds, and the time it took.

    Args:
        table: from `numprune.evaluation.methods.summary`.
        measure: what its column of that name holds. The axis is a square root, so that a method that fails does not
            flatten all others.
        paper: published curves of the same measure, dashed and in the colour of their method: columns method, label,
            ratio, measure, from `numprune.evaluation.reproduction.paper_curves`.
    """
    figure = make_subplots(rows=1, cols=2, column_widths=[0.68, 0.32], horizontal_spacing=0.14)
    paper = table.head(0) if paper is None else paper
    ticks = _sqrt_ticks(max([1e-3, float(table["highest"].max()), *paper["measure"]]))
    names = list(dict.fromkeys([*table["method"], *paper["method"]]))
    colours = sample_colorscale("Turbo", [0.05 + 0.9 * index / max(len(names) - 1, 1) for index in range(len(names))])
    for index, name in enumerate(dict.fromkeys(table["method"])):
        rows = table[table["method"] == name].sort_values("ratio")
        colour = colours[names.index(name)]
        _, dash, symbol = SERIES[index % len(SERIES)]
        if len(paper):
            dash = "solid"
        middle, low, high = (_signed_sqrt(rows[each].to_numpy()) for each in ("measure", "lowest", "highest"))
        style = {
            "name": name,
            "mode": "lines+markers",
            "legendgroup": name,
            "line": {"color": colour, "dash": dash, "width": 2},
            "marker": {"color": colour, "symbol": symbol, "size": 7},
        }
        figure.add_scatter(
            x=rows["ratio"].to_numpy(np.float32),
            y=middle.astype(np.float32),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (high - middle).astype(np.float32),
                "arrayminus": (middle - low).astype(np.float32),
                "thickness": 1.2,
                "width": 4,
            },
            customdata=rows[["measure", "lowest", "highest", "parameters", "seeds"]].to_numpy(np.float64),
            hovertemplate="ratio %{x:.0%}: %{customdata[0]:.4g} (%{customdata[1]:.4g} to %{customdata[2]:.4g} over"
            " %{customdata[4]} seeds)<br>%{customdata[3]:,.0f} parameters<extra>" + name + "</extra>",
            row=1,
            col=1,
            **style,
        )
        figure.add_scatter(
            x=rows["ratio"].to_numpy(np.float32),
            y=rows["seconds"].to_numpy(np.float32),
            showlegend=False,
            hovertemplate="ratio %{x:.0%}: %{y:.2f} s<extra>" + name + "</extra>",
            row=1,
            col=2,
            **style,
        )
    for (name, label), rows in paper.groupby(["method", "label"], sort=False) if len(paper) else ():
        rows = rows.sort_values("ratio")
        colour = colours[names.index(name)]
        figure.add_scatter(
            x=rows["ratio"].to_numpy(np.float32),
            y=_signed_sqrt(rows["measure"].to_numpy(np.float64)).astype(np.float32),
            customdata=rows["measure"].to_numpy(np.float64),
            name=label,
            mode="lines+markers",
            line={"color": colour, "dash": "dash", "width": 1.4},
            marker={"color": colour, "symbol": "circle-open", "size": 6},
            hovertemplate="ratio %{x:.0%}: %{customdata:.4g}<extra>" + label + "</extra>",
            row=1,
            col=1,
        )
    figure.update_xaxes(title="share pruned", tickformat=".0%")
    figure.update_yaxes(
        title=measure, tickvals=np.sqrt(ticks), ticktext=[f"{tick:g}" for tick in ticks.tolist()], row=1, col=1
    )
    figure.update_yaxes(title="seconds to prune", type="log", row=1, col=2)
    _base(figure, 520)
    return figure


def _base(figure: go.Figure, height: int) -> None:
    """What all charts share; the legend stands at the bottom of the picture."""
    figure.update_layout(
        height=height,
        margin={"l": 60, "r": 26, "t": 40, "b": 86},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"color": INK, "size": 12},
        hoverlabel={"font": {"color": "#ffffff"}, "bgcolor": "#222222"},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "bgcolor": CLEAR},
        showlegend=True,
    )
    axis: dict[str, Any] = {"gridcolor": FAINT, "linecolor": FAINT, "zerolinecolor": FAINT, "title_standoff": 8}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)


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


def _tint(colour: str, opacity: float) -> str:
    """#rrggbb as rgba()."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _small(note: str) -> str:
    """A second, smaller line of an axis title."""
    return f"<br><span style='font-size:11px'>{note}</span>"


def _token(token: str) -> str:
    """A token as a label: whitespace is visible where there is nothing else, and markup stays text."""
    shown = token.strip() or token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return escape(shown)


def _signed_sqrt(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.sqrt(np.abs(values))


def _sqrt_ticks(most: float) -> np.ndarray:
    """At most seven round values that are not crowded on a square-root axis which ends at `most`."""
    step = np.sqrt(most) / 6
    ticks = [0.0]
    for exponent in range(-6, 6):
        for digit in (1, 2, 5):
            tick = digit * 10.0**exponent
            if tick <= most * 1.1 and np.sqrt(tick) - np.sqrt(ticks[-1]) >= step:
                ticks.append(tick)
    return np.array(ticks)
