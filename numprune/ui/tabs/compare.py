"""Any models side by side: the same prompts or classes, seed and sampling for all, figures under the same columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pandas as pd

from numprune.errors import InputError
from numprune.ui import engine, html, numbers
from numprune.ui.comparison import measured_on
from numprune.ui.edits import UNREADABLE
from numprune.ui.figures import divergence_chart
from numprune.ui.making import FIRST_CLASSES, IMAGES, MEASURED, QUALITY, TEXTS, make, measure
from numprune.ui.shared import QUICK, Shared, Updates, View, owner_of, toasts
from numprune.ui.side import PAIR, models_of, side_by_side

if TYPE_CHECKING:
    from numprune.evaluation.divergence import Divergence


CHIPS = (Path(__file__).parents[1] / "chips.js").read_text(encoding="utf8")
DISTRIBUTIONS = "Next-token distributions"
MOST_TOKENS = 1024
"""Tokens along which distributions are compared."""
WAITING = "Press Write or Draw: every chosen model makes the same thing here. Measure adds the figures below."
NOTHING = "Press Prune and compare first; then any pruned models are compared here with the dense one."


@dataclass
class CompareTab:
    """Components of the tab."""

    chips: gr.HTML
    texts: gr.Column
    images: gr.Column
    write: gr.Button
    draw: gr.Button
    measure: gr.Button
    diverge: gr.Button
    columns: gr.HTML
    divergence_figures: gr.HTML
    divergence: gr.Plot


def build(shared: Shared) -> None:
    making = shared.making
    chips = gr.HTML("", html_template="<div class='np-chips'></div>", js_on_load=CHIPS, elem_id="np-models")
    with gr.Column() as texts, gr.Row(equal_height=True):
        making.prompts.render()
        making.text.render()
    with gr.Column(visible=False) as images:
        making.classes.render()
    with gr.Row(elem_classes="np-line"):
        write = gr.Button("Write side by side", variant="primary", size="sm", min_width=140, scale=0)
        draw = gr.Button("Draw side by side", variant="primary", size="sm", min_width=140, scale=0, visible=False)
        measure_button = gr.Button("Measure", size="sm", min_width=100, scale=0)
        diverge = gr.Button("Compare next-token distributions", size="sm", min_width=220, scale=0)
    with gr.Accordion("Sampling", open=False):
        with gr.Row() as of_texts:
            for control in making.of_texts:
                control.render()
        with gr.Row(visible=False) as of_images:
            for control in making.of_images:
                control.render()
    numbers.build(
        shared,
        {
            "Texts": numbers.found(TEXTS, "press Write side by side"),
            "Figures": numbers.found(MEASURED, "press Measure"),
            "Images": numbers.found(IMAGES, "press Draw side by side"),
            "Image quality": numbers.found(QUALITY, "press Measure"),
            DISTRIBUTIONS: numbers.found(DISTRIBUTIONS, "press Compare next-token distributions"),
        },
    )
    columns = gr.HTML(html.empty(NOTHING), js_on_load=PAIR, elem_id="np-columns")
    figures = gr.HTML("", elem_id="np-divergence")
    plot = gr.Plot(label="Divergence from the dense model along the text", visible=False)
    tab = CompareTab(chips, texts, images, write, draw, measure_button, diverge, columns, figures, plot)
    for moment in ("opened", "kept"):
        shared.redraw(moment, {chips, columns}, lambda view: chosen_models(tab, view))
    shared.redraw("compared", {columns}, lambda view: {columns: shown(view)})
    parts = {texts, images, of_texts, of_images, write, draw, diverge, making.classes, figures, plot}

    def suit(view: View) -> Updates:
        """The controls of a language or of an image model, and nothing of an earlier one."""
        outline = view.loaded.outline
        reads = outline.reads_text
        classes = [(name, index) for index, name in enumerate(outline.class_names)]
        return {
            texts: gr.Column(visible=reads),
            of_texts: gr.Row(visible=reads),
            write: gr.Button(visible=reads),
            diverge: gr.Button(visible=reads),
            images: gr.Column(visible=not reads),
            of_images: gr.Row(visible=not reads),
            draw: gr.Button(visible=not reads),
            making.classes: gr.Dropdown(
                classes, value=[index for _, index in classes[:FIRST_CLASSES]], multiselect=True
            ),
            figures: "",
            plot: gr.Plot(None, visible=False),
        }

    shared.redraw("opened", parts, suit)
    shared.later(lambda: _wire(shared, tab))


def chosen_models(tab: CompareTab, view: View) -> Updates:
    """The chips, and the columns of the chosen models."""
    names = list(view.variants)
    return {
        tab.chips: json.dumps({"models": names, "chosen": view.workbench.chosen(view.owner)}),
        tab.columns: shown(view),
    }


def shown(view: View) -> str:
    """The columns of the chosen models."""
    if not view.variants:
        return html.empty(NOTHING)
    return side_by_side(view, view.workbench.chosen(view.owner), figures=True) or html.empty(WAITING)


def divergence_table(found: dict[str, Divergence]) -> str:
    """The figures of every model, and how they were measured."""
    rows = [
        (name, f"{d.mean_kl:.4f} ± {d.standard_error:.4f}", f"{d.agreement:.1%}", f"{d.n:,}")
        for name, d in found.items()
    ]
    table = html.table(["", "KL(dense, pruned), nats a token", "Same likeliest token", "Tokens"], rows)
    return table + html.notes(
        [f"± is one standard error over positions; the text is cut after {MOST_TOKENS:,} tokens."]
    )


def _wire(shared: Shared, tab: CompareTab) -> None:
    workbench, making = shared.workbench, shared.making

    def models(view: View) -> dict[str, Any]:
        return models_of(view, workbench.chosen(view.owner))

    def choose(request: gr.Request, event: gr.EventData) -> Updates:
        with toasts():
            names = event._data
            if not isinstance(names, list):
                raise InputError(UNREADABLE)
            workbench.choose(owner_of(request), [str(name) for name in names])
            return chosen_models(tab, shared.view(request))

    def remove(request: gr.Request, event: gr.EventData) -> Updates:
        with toasts():
            workbench.remove(owner_of(request), str(event._data))
            return shared.updates(shared.view(request), "kept", "measured")

    def write(given: Updates, request: gr.Request) -> Iterator[Updates]:
        with shared.job(request) as job:
            view = shared.view(request)
            for _ in make(workbench, view.owner, models(view), making, given, job):
                yield {tab.columns: shown(view)}
            yield shared.updates(view, "compared")

    def measure_all(given: Updates, request: gr.Request) -> Updates:
        with shared.job(request) as job:
            view = shared.view(request)
            measure(workbench, view.owner, models(view), making, given, job)
            return shared.updates(view, "compared", "measured")

    def diverge(text: str, request: gr.Request) -> Updates:
        with shared.job(request) as job:
            view = shared.view(request)
            (_, dense), *others = models(view).items()
            length = min(2048, dense.maximum_length or 2048)
            found = {
                name: engine.divergence(
                    dense,
                    other,
                    measured_on(text),
                    sequence_length=length,
                    limit=MOST_TOKENS,
                    progress=job.progress,
                    cancel=job.cancel,
                )
                for name, other in others
            }
            table = divergence_table(found)
            tokens = next(iter(found.values())).tokens
            chart = divergence_chart(tokens, [(name, d.kl, d.agree) for name, d in found.items()])
            numbers = pd.concat(
                [
                    pd.DataFrame({"model": name, "token": d.tokens, "kl": d.kl, "same_top_1": d.agree})
                    for name, d in found.items()
                ]
            )
            workbench.find(view.owner, DISTRIBUTIONS, numbers, table, chart)
            return {tab.divergence_figures: table, tab.divergence: gr.Plot(chart, visible=True)}

    tab.chips.choose(choose, None, {tab.chips, tab.columns}, **QUICK)
    tab.chips.remove(remove, None, shared.outputs("kept", "measured"), **QUICK)
    for button in (tab.write, tab.draw):
        shared.long(button.click, write, making.inputs, shared.outputs("compared"))
    compared = shared.outputs("compared", "measured")
    shared.long(tab.measure.click, measure_all, making.inputs, compared, show_on=tab.columns)
    drawn = {tab.divergence_figures, tab.divergence}
    shared.long(tab.diverge.click, diverge, making.text, drawn, show_on=tab.divergence_figures)
