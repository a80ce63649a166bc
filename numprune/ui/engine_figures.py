"""Table and bars of models that were timed in several engines. Knows no gradio."""

from __future__ import annotations

from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from numprune.evaluation.engines.records import AtBatch, EngineComparison, EngineResult, Measured
from numprune.ui import html, race
from numprune.ui.chart_style import BLUE, INK, ORANGE, finish

HEADER = (*race.SPEED_COLUMNS, "KV cache, MB")


def engine_table(found: EngineComparison) -> str:
    """All figures, a row for every engine, batch and model, and how they were measured."""
    rows = [row for result in found.engines for row in _rows(result)]
    opened = [
        f"{result.engine} {result.version} on {result.device}: {result.dense.runs_as} in {result.dense.dtype},"
        f" {html.memory(result.dense.weights)}, and {result.pruned.runs_as} in {result.pruned.dtype},"
        f" {html.memory(result.pruned.weights)}."
        for result in found.engines
        if result.refused is None
    ]
    threads = "thread" if found.threads == 1 else "threads"
    measured = (
        f"{found.dense.name} ({found.dense.parameters:,} parameters) and {found.pruned.name}"
        f" ({found.pruned.parameters:,}): median, and lowest to highest, of {found.repetitions} runs of each model,"
        f" taken in turn after a warm-up; {found.prompt_tokens} prompt and {found.new_tokens} new tokens, greedy;"
        f" {found.threads} {threads} of {found.machine}."
    )
    promised = (
        "A gain compares runs made side by side. Promised is what sizes say: decoding by bytes of weights and cache a"
        " step reads, prefill by operations."
    )
    return html.table(HEADER, rows) + html.notes([measured, *opened, promised])


def _rows(result: EngineResult) -> list[tuple[str, ...]]:
    """The rows of an engine; what was not measured has the reason in its first cell."""
    rest = ("",) * (len(HEADER) - 2)
    if result.refused is not None:
        return [(result.engine, f"not measured: {result.refused}", *rest)]
    rows = []
    for at in result.batches:
        name = f"{result.engine}, batch {at.batch}"
        if at.refused is not None:
            rows.append((name, f"not measured: {at.refused}", *rest))
            continue
        rows += [
            _row(f"{name}, dense", at.dense, ("", ""), ("", "")),
            _row(f"{name}, pruned", at.pruned, *_gains(at)),
        ]
    return rows


def _gains(at: AtBatch) -> list[tuple[str, str]]:
    """(gain, promise) of decoding and of the prompt."""
    pairs = (at.decode_gain, at.decode_promised), (at.prefill_gain, at.prefill_promised)
    return [(race.gain(gain), f"{promised:.2f}x") for gain, promised in pairs]


def _row(name: str, measured: Measured, decode: tuple[str, str], prefill: tuple[str, str]) -> tuple[str, ...]:
    return (
        name,
        race.spread(measured.decode),
        *decode,
        race.spread(measured.prefill),
        *prefill,
        race.spread(measured.first_token, 1e3),
        "" if measured.peak_bytes is None else f"{measured.peak_bytes / 1e6:,.1f}",
        f"{measured.kv_bytes / 1e6:,.2f}",
    )


def engine_chart(found: EngineComparison) -> go.Figure | None:
    """How many times as fast as the dense model the pruned one decodes and reads, by engine and batch, beside what
    sizes promise; None where nothing was measured."""
    measured = [(result.engine, at) for result in found.engines for at in result.batches if at.refused is None]
    if not measured:
        return None
    names = [escape(f"{engine}, batch {at.batch}") for engine, at in measured]
    figure = make_subplots(rows=1, cols=2, subplot_titles=("decode", "prefill"), horizontal_spacing=0.1)
    for column, phase in enumerate(("decode", "prefill"), 1):
        gains = np.array([getattr(at, f"{phase}_gain") for _, at in measured])
        promised = np.array([getattr(at, f"{phase}_promised") for _, at in measured])
        middle, low, high = gains.T
        figure.add_bar(
            x=names,
            y=middle.astype(np.float32),
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (high - middle).astype(np.float32),
                "arrayminus": (middle - low).astype(np.float32),
                "color": INK,
                "thickness": 1.2,
                "width": 4,
            },
            customdata=gains,
            name="measured",
            legendgroup="measured",
            showlegend=column == 1,
            marker={"color": BLUE},
            hovertemplate="%{x}: %{customdata[0]:.2f}x (%{customdata[1]:.2f}x to %{customdata[2]:.2f}x)"
            f"<extra>{phase}</extra>",
            row=1,
            col=column,
        )
        figure.add_scatter(
            x=names,
            y=promised.astype(np.float32),
            name="promised by sizes",
            legendgroup="promised",
            showlegend=column == 1,
            mode="markers",
            marker={"color": ORANGE, "symbol": "diamond", "size": 9},
            hovertemplate="%{x}: promised %{y:.2f}x<extra>" + phase + "</extra>",
            row=1,
            col=column,
        )
        figure.add_hline(y=1, line={"color": INK, "width": 1, "dash": "dot"}, row=1, col=column)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(title="speed over dense", rangemode="tozero", ticksuffix="x", row=1, col=1)
    figure.update_yaxes(rangemode="tozero", ticksuffix="x", row=1, col=2)
    finish(figure, 380)
    return figure
