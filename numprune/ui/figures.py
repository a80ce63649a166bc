"""Charts of what was measured: pure functions that know neither models nor gradio."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from numprune.ui.chart_style import BLUE, INK, ORANGE, SERIES, finish, token


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
    finish(figure, 340)
    return figure


def divergence_chart(tokens: Sequence[str], curves: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> go.Figure:
    """KL divergence from the dense model along a text, marked where the likeliest token is another one.

    Args:
        tokens: the predicted tokens.
        curves: (variant, KL in nats, whether the likeliest tokens agree) by position. The vertical axis is a square
            root: zero has a place on it, and small values are told apart.
    """
    figure = go.Figure()
    names = [token(each) for each in tokens]
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
    finish(figure, 380)
    return figure


def sweep_chart(table: pd.DataFrame) -> go.Figure:
    """Speed and memory against ratio, relative to the lowest ratio in the table, and perplexity where it is known.

    Args:
        table: columns ratio, decode, decode_low, decode_high, prefill, prefill_low, prefill_high (tokens/s), weights
            (bytes), kv (bytes per token), perplexity (may be NaN). Where it has decode_gain, prefill_gain and theirs
            of low and high, those of models that were timed in turn with the dense one, they are what is drawn.
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
        gain = [values / (float(base[column]) or np.nan) for values in (speed, low, high)]
        if f"{column}_gain" in table:
            gain = [table[f"{column}_gain{end}"].to_numpy(np.float64) for end in ("", "_low", "_high")]
        figure.add_scatter(
            x=ratio,
            y=gain[0].astype(np.float32),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (gain[2] - gain[0]).astype(np.float32),
                "arrayminus": (gain[0] - gain[1]).astype(np.float32),
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
    finish(figure, 640 if known.any() else 380)
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
    finish(figure, 380)
    return figure


def methods_chart(table: pd.DataFrame, measure: str, *, paper: pd.DataFrame | None = None) -> go.Figure:
    """What every method loses against the ratio, with lowest and highest over the seeds, and the time it took.

    Args:
        table: from `numprune.evaluation.cells.summary`.
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
    finish(figure, 520)
    return figure


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
