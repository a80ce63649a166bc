"""Speed: both models measured in turn, every token's time replayed; speed and memory by ratio; and what was measured in
other engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pandas as pd

from numprune.errors import InputError, Progress
from numprune.evaluation.engines.records import EngineComparison
from numprune.evaluation.repeats import FEWEST
from numprune.ui import engine, html, race
from numprune.ui.comparison import DENSE
from numprune.ui.edits import ratios_of
from numprune.ui.engine_figures import engine_chart, engine_table
from numprune.ui.figures import sweep_chart
from numprune.ui.shared import QUICK, Shared, Updates, View, toasts

if TYPE_CHECKING:
    from numprune.evaluation.speed_comparison import SpeedComparison
    from numprune.evaluation.sweep import SweepPoint
    from numprune.models import Model


SPEED, BY_RATIO, BY_ENGINE = "Speed", "Speed and memory by ratio", "Speed by engine"
BATCHES = (1, 8)
PROMPT = (
    "Once upon a time, a little rabbit lived in a small house near the river. Every morning she went out to look for"
    " carrots. One day it began to rain, and the water came up to her door. She was afraid, but then she saw a big red"
    " boat"
)
WAITING = "Press Measure: both models are timed in turn, silently, at batch 1 and 8; then their tokens can be replayed."
WITHOUT_PRUNED = "Prune a model, then measure both here in turn."
BY_RATIO_WAITING = "Press By ratio: the recipe of the page is carried out at every ratio, and each model is timed."
BY_ENGINE_WAITING = (
    "Where the models are served: numprune bench engines MODEL PRUNED --out FILE times both in transformers, llama.cpp,"
    " ONNX Runtime and vLLM; open the file here."
)
PROMPT_TOKENS, NEW_TOKENS = 64, 64


def build(shared: Shared) -> None:
    with gr.Row(elem_classes="np-line"):
        which = gr.Dropdown([], multiselect=True, max_choices=3, label="Dense and", elem_id="np-speed-models", scale=3)
        prompt = gr.Textbox(PROMPT, label="Prompt", max_lines=1, scale=3)
        new_tokens = gr.Slider(8, 512, NEW_TOKENS, step=8, label="New tokens", scale=2, min_width=150)
        runs = gr.Number(FEWEST, precision=0, minimum=FEWEST, label="Runs of each", scale=1, min_width=100)
        measure = gr.Button("Measure", variant="primary", elem_id="np-speed-measure", scale=1, min_width=120)
    shown = gr.HTML(html.empty(WITHOUT_PRUNED), js_on_load=race.JS, elem_id="np-race")
    figures = gr.HTML("", elem_id="np-speed-figures")
    with gr.Row(elem_classes="np-line"):
        ratios = gr.Textbox("0 0.1 0.3 0.5", label="Ratios", scale=3)
        by_ratio = gr.Button("By ratio", variant="secondary", elem_id="np-speed-by-ratio", scale=1, min_width=120)
    ratio_figures = gr.HTML(html.empty(BY_RATIO_WAITING), elem_id="np-speed-ratios")
    chart = gr.Plot(label=BY_RATIO, visible=False)
    with gr.Row():
        opener = gr.UploadButton(
            "Open bench engines",
            size="sm",
            file_types=[".json"],
            type="filepath",
            elem_id="np-speed-open-engines",
            scale=0,
            min_width=180,
        )
    engine_figures = gr.HTML(html.empty(BY_ENGINE_WAITING), elem_id="np-speed-engines")
    engine_bars = gr.Plot(label=BY_ENGINE, visible=False)

    def opened(view: View) -> Updates:
        return {
            which: gr.Dropdown([], value=[], multiselect=True),
            prompt: gr.Textbox(visible=view.loaded.outline.reads_text),
            shown: html.empty(WITHOUT_PRUNED),
            figures: "",
            ratio_figures: html.empty(BY_RATIO_WAITING),
            chart: gr.Plot(None, visible=False),
            engine_figures: html.empty(BY_ENGINE_WAITING),
            engine_bars: gr.Plot(None, visible=False),
        }

    def kept(view: View) -> Updates:
        names = list(view.variants)
        measured = {} if SPEED in view.findings else {shown: html.empty(WAITING if names else WITHOUT_PRUNED)}
        return {which: gr.Dropdown(names, value=names[-1:], multiselect=True), **measured}

    by_engine = {engine_figures, engine_bars}
    shared.redraw("opened", {which, prompt, shown, figures, ratio_figures, chart, *by_engine}, opened)
    shared.redraw("kept", {which, shown}, kept)

    def run(given: Updates, request: gr.Request) -> Iterator[Updates]:
        """Time all models at every batch; the replay is of the first one."""
        with shared.job(request) as job:
            view = shared.view(request)
            models = chosen(view, given[which])
            text = given[prompt] if readable(view.loaded.model) else None
            found: list[SpeedComparison] = []
            for batch in BATCHES:
                options = shape(view.loaded.model, text, int(given[new_tokens]))
                found.append(
                    engine.compare_speed(
                        models,
                        **options,
                        batch=batch,
                        repetitions=int(given[runs] or 0),
                        progress=at_batch(batch, job.progress),
                        cancel=job.cancel,
                    )
                )
                played, table = race.replay(found[0], text), race.figures(found)
                yield {shown: played, figures: table}
            numbers = pd.concat([each.to_pandas() for each in found], ignore_index=True)
            shared.workbench.find(view.owner, SPEED, numbers, played, table)

    def run_by_ratio(given: Updates, request: gr.Request) -> Iterator[Updates]:
        with shared.job(request) as job:
            view = shared.view(request)
            asked = sorted({0.0, *ratios_of(given[ratios])})
            stats = shared.workbench.stats(view.session, progress=job.progress, cancel=job.cancel)
            loaded, points = view.loaded, []
            sized = shape(loaded.model, None, NEW_TOKENS)
            for point in engine.sweep(
                loaded.model,
                stats,
                loaded.scores,
                view.session.recipe,
                asked,
                prompt_tokens=sized["prompt_tokens"],
                new_tokens=sized["new_tokens"],
                progress=job.progress,
                cancel=job.cancel,
            ):
                points.append(point)
                numbers = sweep_table(points)
                drawn, table = sweep_chart(numbers), sweep_figures(points)
                yield {ratio_figures: table, chart: gr.Plot(drawn, visible=True)}
            shared.workbench.find(view.owner, BY_RATIO, numbers, table, drawn)

    def open_engines(file: str, request: gr.Request) -> Updates:
        with toasts():
            view = shared.view(request)
            found = EngineComparison.read(Path(file))
            table, drawn = engine_table(found), engine_chart(found)
            pictures = [] if drawn is None else [drawn]
            shared.workbench.find(view.owner, BY_ENGINE, found.to_pandas(), table, *pictures)
            return {engine_figures: table, engine_bars: gr.Plot(drawn, visible=drawn is not None)}

    def wire() -> None:
        shared.long(measure.click, run, {which, prompt, new_tokens, runs}, {shown, figures}, show_on=shown)
        shared.long(by_ratio.click, run_by_ratio, {ratios}, {ratio_figures, chart}, show_on=ratio_figures)
        opener.upload(open_engines, opener, by_engine, **QUICK)

    shared.later(wire)


def readable(model: Model) -> bool:
    """Whether a model's tokens are text."""
    return model.adapter.reads_text and model.tokenizer is not None


def chosen(view: View, names: Sequence[str] | None) -> dict[str, Model]:
    """The dense model and the pruned ones of these names.

    Raises:
        InputError: there is none, or only the scores of the dense one are here.
    """
    dense = view.loaded.model
    if not names:
        raise InputError("There is no pruned model chosen; press Prune and compare, or choose one.")
    return {DENSE: dense, **{name: view.workbench.pruned(view.owner, name) for name in names}}


def shape(model: Model, text: str | None, new_tokens: int) -> dict[str, Any]:
    """What one run reads and writes, as `compare_speed` takes it: the text, or as many arbitrary tokens as fit.

    Raises:
        InputError: the text is empty.
    """
    if text is not None:
        ids = model.tokenizer(text, verbose=False)["input_ids"]
        if not ids:
            raise InputError("There is no prompt; write one to continue.")
        return {"prompt": ids, "new_tokens": new_tokens}
    limit = model.maximum_length or PROMPT_TOKENS + new_tokens
    # An image is drawn from its class alone.
    prompt = min(PROMPT_TOKENS, limit // 2) if model.adapter.reads_text else model.condition_tokens
    return {"prompt_tokens": prompt, "new_tokens": min(new_tokens, limit - prompt)}


def at_batch(batch: int, progress: Progress) -> Progress:
    """`progress` that says which batch is measured."""
    return lambda done, total, what, /: progress(done, total, f"{what}, batch {batch}")


def sweep_table(points: Sequence[SweepPoint]) -> pd.DataFrame:
    """One row per ratio, as `sweep_chart` reads it."""
    rows = []
    for point in points:
        row: dict[str, Any] = {"ratio": point.ratio, "reached": point.reached, "parameters": point.sizes.parameters}
        for name, values in (
            ("decode", point.speed.decode),
            ("prefill", point.speed.prefill),
            ("decode_gain", point.decode_gain),
            ("prefill_gain", point.prefill_gain),
        ):
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        row |= {"weights": point.sizes.bytes, "kv": point.sizes.kv_bytes, "perplexity": float("nan")}
        row |= {name: getattr(point.speed, name) for name in ("batch", "prompt_tokens", "new_tokens", "repetitions")}
        rows.append({**row, "device": point.speed.device, "dtype": point.speed.dtype})
    return pd.DataFrame(rows)


def sweep_figures(points: Sequence[SweepPoint]) -> str:
    """The table twin of the chart."""
    first = points[0].speed
    rows = [
        (
            f"{point.ratio:.0%}",
            f"{point.sizes.parameters:,}",
            html.memory(point.sizes.bytes),
            html.memory(point.sizes.kv_bytes * 1000),
            race.spread(point.speed.decode),
            race.gain(point.decode_gain),
            race.spread(point.speed.prefill),
            race.gain(point.prefill_gain),
        )
        for point in points
    ]
    header = ["Ratio", "Parameters", "Weights", "KV cache per 1,000 tokens", "Decode, tokens/s", "Gain"]
    note = (
        f"Median, and lowest to highest, of {first.repetitions} runs after a warm-up, each model in turn with the dense"
        f" one: {first.prompt_tokens} prompt and {first.new_tokens} new tokens, batch {first.batch}, on {first.device}"
        f" in {first.dtype}."
    )
    return html.table([*header, "Prefill, tokens/s", "Gain"], rows) + html.notes([note])
