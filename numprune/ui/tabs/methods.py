"""Methods side by side: what each loses against the ratio, cell by cell, each measured once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import gradio as gr
import pandas as pd

from numprune.errors import InputError
from numprune.evaluation.cells import Cell, read_cells, write_cells
from numprune.plan.presets import METHODS
from numprune.plan.recipe import Recipe
from numprune.ui import engine, html
from numprune.ui.cells import COMMON, JS, cells_chart, cells_table, one_run, points_of, seeds_of
from numprune.ui.comparison import measured_on
from numprune.ui.edits import ratios_of
from numprune.ui.given_numbers import number
from numprune.ui.session import Session
from numprune.ui.shared import QUICK, Shared, Updates, View, file_name, owner_of, toasts

BY_METHOD = "Methods side by side"
WAITING = (
    "Press Compare: every method prunes and is measured at every ratio. What was measured stays, so a stopped"
    " comparison goes on where it was; so does one opened from the file of numprune sweep --methods."
)
FIRST = ("paper", "balanced", "flap")


def build(shared: Shared) -> None:
    methods = gr.CheckboxGroup(
        list(METHODS), value=[name for name in FIRST if name in METHODS], label="Methods", elem_id="np-methods"
    )
    with gr.Row(elem_classes="np-line"):
        ratios = gr.Textbox("0.2 0.4", label="Ratios", min_width=120)
        seeds = gr.Textbox("0", label="Calibration seeds", min_width=120)
        repetitions = gr.Number(0, precision=0, minimum=0, label="Runs for speed, 0 for none", min_width=120)
        compare = gr.Button("Compare", variant="primary", elem_id="np-methods-compare", min_width=120)
    figures = gr.HTML(html.empty(WAITING), js_on_load=JS, elem_id="np-cells")
    chart = gr.Plot(label=BY_METHOD, visible=False)
    with gr.Row(elem_classes="np-line"):
        save = gr.Button("⤓ Cells as CSV", size="sm", interactive=False, min_width=120)
        opener = gr.UploadButton("Open cells", size="sm", file_types=[".csv"], type="filepath", min_width=120)
    outputs = {figures, chart, save}

    def opened(view: View) -> Updates:
        return {figures: html.empty(WAITING), chart: gr.Plot(None, visible=False), save: gr.Button(interactive=False)}

    shared.redraw("opened", outputs, opened)

    def show(view: View, cells: Sequence[Cell]) -> Updates:
        """Keep the cells, for the report and the frontier too, and show them."""
        workbench, loaded = shared.workbench, view.loaded
        own = view.session.recipe if cells[0].model == loaded.outline.name else None
        workbench.keep_cells(view.owner, cells)
        for point in [] if own is None else points_of(cells, own):
            workbench.point(view.owner, point)
        table, drawn = cells_table(cells, own), cells_chart(cells, loaded.model if loaded.weights.ready else None)
        numbers = pd.DataFrame([asdict(cell) for cell in cells])
        workbench.find(view.owner, BY_METHOD, numbers, cells_table(cells), *([] if drawn is None else [drawn]))
        return {
            **shared.updates(view, "measured"),
            figures: table,
            chart: gr.Plot(drawn, visible=drawn is not None),
            save: gr.Button(interactive=True),
        }

    def compare_cells(given: Updates, request: gr.Request) -> Iterator[Updates]:
        """Measure the cells that are missing, and show all of the run after each."""
        with shared.job(request) as job:
            view = shared.view(request)
            model, recipe = view.loaded.model, common_recipe(view.session)
            making = shared.making
            bench = engine.Bench(
                data=measured_on(given[making.text]),
                sequence_length=view.session.dense.calibration.sequence_length,
                images=int(given[making.samples] or 0),
                drawing={"cfg_scale": number(given[making.guidance], "Guidance"), "top_k": 0},
                repetitions=int(given[repetitions] or 0),
            )
            run, before = engine.run_of(model, recipe, bench), shared.workbench.cells(view.owner)
            cells = shared.workbench.cells(view.owner, run)
            if before and not cells:
                gr.Info(
                    "The cells shown before are of another model, calibration, held-out text or setting; this"
                    " comparison starts anew.",
                    title="Another run",
                )
            found = engine.compare_methods(
                model,
                [name for name in METHODS if name in (given[methods] or ())],
                [ratio for ratio in ratios_of(given[ratios]) if ratio],
                bench,
                recipe=recipe,
                seeds=seeds_of(given[seeds]),
                done=cells,
                progress=job.progress,
                cancel=job.cancel,
            )
            if cells:
                yield show(view, cells)
            for cell in found:
                cells = [*cells, cell]
                yield show(view, cells)

    def save_cells(request: gr.Request) -> Updates:
        with toasts():
            cells = shared.workbench.cells(owner_of(request))
            if not cells:
                raise InputError("There are no cells yet; press Compare.")
            file = shared.downloads.folder(owner_of(request)) / file_name(f"{cells[0].model}-methods.csv")
            write_cells(file, cells)
            return shared.hand(file)

    def open_cells(file: str, request: gr.Request) -> Updates:
        with toasts():
            return show(shared.view(request), one_run(read_cells(Path(file))))

    def wire() -> None:
        making = shared.making
        asked = {methods, ratios, seeds, repetitions, making.text, making.samples, making.guidance}
        shown = outputs | shared.outputs("measured")
        shared.long(compare.click, compare_cells, asked, shown, show_on=figures)
        shared.save_with(save.click(save_cells, None, {shared.download}, **QUICK))
        opener.upload(open_cells, opener, shown, **QUICK)
        figures.open(lambda: gr.Tabs(selected="plan"), None, shared.tabs, **QUICK)

    shared.later(wire)


def common_recipe(session: Session) -> Recipe:
    """What all methods share: the calibration the model was loaded with, damping and rounding, and no locks."""
    # As asked for, not as the model's length cut it, so that cells agree with the command line's.
    return Recipe(calibration=session.dense.calibration, **{name: getattr(session.recipe, name) for name in COMMON})
