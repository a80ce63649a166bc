"""Speed of models that were timed in turn: the replay of their runs and the table of figures. Knows no gradio."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from numprune.ui import html
from numprune.ui.chart_style import SERIES

if TYPE_CHECKING:
    from numprune.evaluation.speed_comparison import SpeedComparison, Timed


JS = (Path(__file__).parent / "race.js").read_text(encoding="utf8")
CSS = (Path(__file__).parent / "race.css").read_text(encoding="utf8")

PACES = (1.0, 0.5, 0.25, 0.1)
LONG_ENOUGH = 3.0
"""Seconds that the shortest run should take to watch, if a slower replay can make it so."""


def replay(comparison: SpeedComparison, prompt: str | None) -> str:
    """Bars, counters and texts as they stand at the end, with buttons that play the runs; `JS` makes them work.

    Args:
        prompt: what the texts continue; None where tokens are not to be read.
    """
    runners = [
        {
            "seconds": [round(second, 6) for second in timed.run.seconds],
            "pieces": [] if prompt is None else list(timed.pieces),
        }
        for timed in comparison.models
    ]
    told = verdict(comparison)
    pace = _pace(min(timed.run.seconds[-1] for timed in comparison.models))
    options = "".join(
        f"<option value='{value:g}'{' selected' if value == pace else ''}>{value:g}x</option>" for value in PACES
    )
    buttons = "".join(
        f"<button type='button' data-play='{mode}' data-label='{label}' aria-pressed='false'>{label}</button>"
        for mode, label in (("turn", "One after the other"), ("race", "Race"))
    )
    lanes = "".join(_lane(timed, number, prompt) for number, timed in enumerate(comparison.models))
    return (
        f"<div class='np-race' data-race='{escape(json.dumps({'runners': runners}, separators=(',', ':')))}'"
        f" data-verdict='{escape(told)}'>"
        f"<div class='np-race-bar'>{buttons}"
        f"<label>at <select aria-label='Pace of the replay'>{options}</select></label>"
        f"<span class='np-race-said' role='status'>{escape(told)}</span></div>"
        f"<div class='np-lanes'>{lanes}</div></div>"
    )


def _lane(timed: Timed, number: int, prompt: str | None) -> str:
    colour, _, _ = SERIES[number % len(SERIES)]
    run = timed.run
    count = len(run.seconds)
    counter = f"{(count - 1) / run.rest:.1f} tokens/s · {count} of {count} · {run.seconds[-1]:.2f} s"
    text = ""
    if prompt is not None:
        written = escape("".join(timed.pieces))
        text = (
            f"<p><span class='np-prompt'>{escape(prompt)}</span><span data-written>{written}</span>"
            "<span data-rest aria-hidden='true'></span></p>"
        )
    return (
        f"<div class='np-lane' role='group' aria-label='{escape(timed.name)}' style='--lane:{colour}'>"
        f"<header><h3>{escape(timed.name)}</h3><span class='np-count'>{counter}</span></header>"
        f"<div class='np-track' role='progressbar' aria-label='{escape(f'Tokens of {timed.name}')}' aria-valuemin='0'"
        f" aria-valuemax='{count}' aria-valuenow='{count}'><i style='width:100%'></i></div>{text}</div>"
    )


def _pace(shortest: float) -> float:
    """The fastest replay of the shortest run that can be followed."""
    return next((pace for pace in PACES if shortest / pace >= LONG_ENOUGH), PACES[-1])


def verdict(comparison: SpeedComparison) -> str:
    """What the runs say of decoding, slowdowns too, beside what the sizes promise."""
    first, *others = comparison.models
    return " ".join(_sentence(first, timed, comparison.promised(timed)["decode"]) for timed in others)


def _sentence(first: Timed, timed: Timed, promised: float) -> str:
    middle, low, high = timed.decode_gain
    remark = ", which may be chance" if low <= 1 <= high else "" if middle > 1 else ", so slower"
    said = (
        f"{timed.name} decodes {middle:.2f}x as fast as {first.name}{remark} ({low:.2f}x to {high:.2f}x in"
        f" {timed.speed.repetitions} runs each, in turn)"
    )
    return f"{said}; its sizes promise {promised:.2f}x."


SPEED_COLUMNS = (
    "",
    "Decode, tokens/s",
    "Gain",
    "Promised",
    "Prefill, tokens/s",
    "Gain",
    "Promised",
    "First token, ms",
    "Peak memory, MB",
)
"""What every table of speeds begins with."""


def figures(comparisons: Sequence[SpeedComparison]) -> str:
    """The table of all figures, a row for every model and batch."""
    header = [*SPEED_COLUMNS, "Weights and cache, MB"]
    rows = [
        (
            f"{timed.name}, batch {timed.speed.batch}",
            spread(timed.speed.decode),
            gain(timed.decode_gain),
            f"{promised['decode']:.2f}x",
            spread(timed.speed.prefill),
            gain(timed.prefill_gain),
            f"{promised['prefill']:.2f}x",
            spread(timed.speed.first_token, 1e3),
            "" if timed.speed.peak_bytes is None else spread(timed.speed.peak_bytes, 1e-6),
            f"{timed.memory / 1e6:,.1f} · {promised['memory']:.2f}x",
        )
        for comparison in comparisons
        for timed in comparison.models
        for promised in (comparison.promised(timed),)
    ]
    speed, threads = comparisons[0].models[0].speed, comparisons[0].threads
    small_print = [
        f"Median, and lowest to highest, of {speed.repetitions} runs of each model, taken in turn after a warm-up:"
        f" {speed.prompt_tokens} prompt and {speed.new_tokens} new tokens, greedy, on {speed.device} in {speed.dtype},"
        f" {threads} {'thread' if threads == 1 else 'threads'}. The runs are recorded alone and silently; the replay"
        " only shows them.",
        "A gain compares runs made side by side. Promised is what sizes say: decoding by bytes of weights and cache a"
        " step reads, prefill by operations. Where a machine waits for something else, it gains less.",
        *(
            ["Peak memory: weights and what the process grows by while it generates."]
            if speed.peak_bytes is not None
            else []
        ),
    ]
    return html.table(header, rows) + html.notes(small_print)


def spread(values: tuple[float, float, float], scale: float = 1.0) -> html.Markup:
    """A cell of a median, with lowest to highest below it."""
    digits = 0 if values[0] * scale >= 1000 else 1
    return _cell(*(f"{value * scale:,.{digits}f}" for value in values))


def gain(values: tuple[float, float, float]) -> html.Markup:
    """A cell of how many times as fast, with lowest to highest below it; a model is as fast as itself."""
    return html.Markup("1.00x") if set(values) == {1.0} else _cell(*(f"{value:.2f}x" for value in values))


def _cell(middle: str, low: str, high: str) -> html.Markup:
    return html.Markup(f"{middle}<small>{low} to {high}</small>")
