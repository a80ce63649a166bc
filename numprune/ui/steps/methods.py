"""Part of step 5: methods side by side, cell by cell, each measured once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pandas as pd

from numprune.errors import InputError
from numprune.evaluation.cells import DENSE, EXCESS_LOSS, JUDGE_DISTANCE, Cell, read_cells, summary, write_cells
from numprune.evaluation.measurement import Bench, run_of
from numprune.evaluation.methods import compare_methods
from numprune.evaluation.reproduction import curves_for
from numprune.models import Model, held_out_text
from numprune.plan.presets import METHODS
from numprune.plan.recipe import Recipe
from numprune.ui import html
from numprune.ui.figures import methods_chart
from numprune.ui.page import ACCELERATOR, LIVE, Updates, file_name, owner_of, toasts
from numprune.ui.ratios import parse_ratio
from numprune.ui.session import Session
from numprune.ui.workbench import reporter

if TYPE_CHECKING:
    from numprune.ui.page import Page

BY_METHOD = "Methods side by side"
WAITING = "Press Compare methods; every method prunes and is measured at every ratio, and what is there already stays."
FIRST = ("paper", "balanced", "flap")
MOST_SEEDS = 10


@dataclass
class MethodsPart:
    """Components of the comparison of methods."""

    methods: gr.CheckboxGroup
    ratios: gr.Textbox
    seeds: gr.Textbox
    repetitions: gr.Number
    compare: gr.Button
    figures: gr.HTML
    chart: gr.Plot
    save: gr.Button
    open: gr.UploadButton

    @property
    def inputs(self) -> set[Any]:
        return {self.methods, self.ratios, self.seeds, self.repetitions}

    @property
    def outputs(self) -> set[Any]:
        return {self.figures, self.chart, self.save}

    def clear(self) -> Updates:
        return {
            self.figures: html.empty(WAITING),
            self.chart: gr.Plot(None, visible=False),
            self.save: gr.Button(interactive=False),
        }

    def show(self, cells: Sequence[Cell], chart: Any) -> Updates:
        return {
            self.figures: cells_table(cells),
            self.chart: gr.Plot(chart, visible=chart is not None),
            self.save: gr.Button(interactive=True),
        }


def ratios_of(text: str) -> list[float]:
    """The numbers of a ratio box, ascending."""
    ratios = sorted({parse_ratio(part) for part in text.replace(";", " ").split()})
    if not 1 <= len(ratios) <= 12:
        raise InputError(f"There are {len(ratios)} ratios; give 1 to 12, such as 0 0.1 0.3 0.5.")
    return ratios


def seeds_of(text: str) -> list[int]:
    """The whole numbers of the seed box, as they stand there.

    Raises:
        InputError: there is none, there are too many, or one is no whole number.
    """
    parts = text.replace(",", " ").replace(";", " ").split()
    if not all(part.isdecimal() for part in parts) or not 1 <= len(parts) <= MOST_SEEDS:
        raise InputError(f"The seeds are '{text}'; give 1 to {MOST_SEEDS} whole numbers, such as 0 1 2.")
    return list(dict.fromkeys(map(int, parts)))


def common_recipe(session: Session) -> Recipe:
    """What all methods share: the calibration the model was loaded with, damping and rounding, and no locks."""
    own = session.recipe
    shared = {name: getattr(own, name) for name in ("damping", "round_heads", "round_channels", "allow_empty")}
    # As asked for, not as the model's length cut it, so that cells agree with the command line's.
    return Recipe(calibration=session.dense.calibration, **shared)


def one_run(cells: Sequence[Cell]) -> list[Cell]:
    """Cells that can be shown together.

    Raises:
        InputError: there is none, or they are of several runs.
    """
    if len({cell.run for cell in cells}) != 1:
        raise InputError("The file holds no cells, or cells of several runs; open one that a single run wrote.")
    return list(cells)


def cells_chart(cells: Sequence[Cell], model: Model | None = None) -> Any:
    """The picture of all cells; None while there is only the dense model.

    Args:
        model: the one on the page. Where the cells are its own and the paper has curves of it, they are there too.
    """
    if all(cell.method == DENSE for cell in cells):
        return None
    if cells[0].perplexity is None:
        return methods_chart(summary(cells), JUDGE_DISTANCE)
    curves = curves_for(model, cells[0].data) if model is not None and model.name == cells[0].model else None
    if curves is None:
        return methods_chart(summary(cells), EXCESS_LOSS)
    figure = methods_chart(summary(cells), EXCESS_LOSS, paper=curves.table)
    figure.update_layout(title={"text": curves.caption, "font": {"size": 13}}, margin={"t": 80})
    return figure


def cells_table(cells: Sequence[Cell]) -> str:
    """The table twin of the chart, and how the cells were measured."""
    dense, first = next((cell for cell in cells if cell.method == DENSE), None), cells[0]
    images = first.perplexity is None
    columns = {
        "Parameters": lambda row: f"{row.parameters:,}",
        "Fréchet distance" if images else "Excess loss, nats a token": loss,
        "KL(dense, pruned)": lambda row: known(row.kl, ".4f"),
        "Recognised": lambda row: known(row.recognised, ".1%"),
        "Seconds to prune": lambda row: known(row.seconds, ".1f"),
        "Decode, tokens/s": lambda row: known(row.decode, ".1f"),
    }
    found = list(summary(cells).itertuples())
    filled = {name: values for name, how in columns.items() if any(values := [how(row) for row in found])}
    names = [(row.method, f"{row.ratio:.0%}") for row in found]
    rows = [(*name, *values) for name, *values in zip(names, *filled.values(), strict=True)]
    seeds = sorted({cell.seed for cell in cells if cell.method != DENSE})
    note = f"{first.model} on {first.device}, {first.threads} {'thread' if first.threads == 1 else 'threads'}. "
    if dense is not None:
        quality = (
            f"{JUDGE_DISTANCE} {dense.fid:.4f} over {dense.images:,} images"
            if images
            else f"perplexity {dense.perplexity:.3f} over {dense.tokens:,} tokens"
        )
        note += f"Dense model: {dense.parameters:,} parameters, {quality}. "
    note += f"Mean (lowest to highest) over calibration seeds {', '.join(map(str, seeds))}." if seeds else ""
    return html.table(["Method", "Ratio", *filled], rows) + html.notes([note])


def loss(row: Any) -> str:
    """A row's measure, with its spread where there are several seeds."""
    return f"{row.measure:.4f}" + (f" ({row.lowest:.4f} to {row.highest:.4f})" if row.seeds > 1 else "")


def known(value: float, how: str) -> str:
    return "" if math.isnan(value) else format(value, how)


def build() -> MethodsPart:
    with gr.Accordion(BY_METHOD, open=False, elem_id="np-methods"):
        gr.Markdown(
            "The same model, calibration and held-out text (or judge of images) for every method, each with settings"
            " of its own. A stopped comparison goes on where it was; so does one opened from the file of"
            " `numprune sweep --methods`.",
            elem_classes="np-help",
        )
        methods = gr.CheckboxGroup(
            list(METHODS),
            value=[name for name in FIRST if name in METHODS],
            label="Methods",
            info="The methods of step 3, and other people's as their public code defines them.",
        )
        with gr.Row():
            ratios = gr.Textbox(
                "0.2 0.4", label="Ratios to compare at", info="Shares of the prunable parameters.", min_width=160
            )
            seeds = gr.Textbox("0", label="Calibration seeds", info="Several tell how far luck goes.", min_width=160)
            repetitions = gr.Number(
                0,
                precision=0,
                minimum=0,
                label="Repetitions of speed",
                info="0 leaves speed out, which saves time.",
                min_width=160,
            )
            compare = gr.Button("Compare methods", variant="secondary", min_width=160)
        figures = gr.HTML(html.empty(WAITING))
        chart = gr.Plot(label=BY_METHOD, visible=False)
        with gr.Row():
            save = gr.Button("Download the cells", size="sm", interactive=False)
            opener = gr.UploadButton("Open cells", size="sm", file_types=[".csv"], type="filepath")
    return MethodsPart(methods, ratios, seeds, repetitions, compare, figures, chart, save, opener)


def wire(page: Page) -> None:
    part = page.compare.methods

    def bench_of(given: Updates, session: Session) -> Bench:
        images, text = page.compare.images, given[page.compare.own_text]
        return Bench(
            data=[text] if text.strip() else held_out_text(),
            sequence_length=session.dense.calibration.sequence_length,
            images=int(given[images.samples] or 0),
            drawing={"cfg_scale": float(given[images.guidance]), "top_k": 0},
            repetitions=int(given[part.repetitions] or 0),
        )

    def show(owner: str, session: Session, cells: Sequence[Cell]) -> Updates:
        """Keep the cells and show them."""
        page.workbench.keep_cells(owner, cells)
        numbers = pd.DataFrame([asdict(cell) for cell in cells])
        chart = cells_chart(cells, None if session.dense is None else page.workbench.dense(session).model)
        page.workbench.find(owner, BY_METHOD, numbers, cells_table(cells), *([] if chart is None else [chart]))
        return part.show(cells, chart)

    def compare_cells(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[Updates]:
        """Measure the cells that are missing, and show all of the run after each."""
        with page.job(request) as cancel:
            owner, session = owner_of(request), given[page.session]
            model = page.workbench.dense(session).model
            recipe, bench = common_recipe(session), bench_of(given, session)
            run, before = run_of(model, recipe, bench), page.workbench.cells(owner)
            cells = page.workbench.cells(owner, run)
            if before and not cells:
                gr.Info(
                    "The cells shown before are of another model, calibration, held-out text or setting; this"
                    " comparison starts anew.",
                    title="Another run",
                )
            found = compare_methods(
                model,
                [name for name in METHODS if name in (given[part.methods] or ())],
                [ratio for ratio in ratios_of(given[part.ratios]) if ratio],
                bench,
                recipe=recipe,
                seeds=seeds_of(given[part.seeds]),
                done=cells,
                progress=reporter(bar),
                cancel=cancel,
            )
            if cells:
                yield show(owner, session, cells)
            for cell in found:
                cells = [*cells, cell]
                yield show(owner, session, cells)

    def save(request: gr.Request) -> Updates:
        with toasts():
            cells = page.workbench.cells(owner_of(request))
            if not cells:
                raise InputError("There are no cells yet; press Compare methods.")
            file = page.downloads.folder(owner_of(request)) / file_name(f"{cells[0].model}-methods.csv")
            write_cells(file, cells)
            return page.hand(file)

    def open_cells(given: Updates, request: gr.Request) -> Updates:
        with toasts():
            return show(owner_of(request), given[page.session], one_run(read_cells(Path(given[part.open]))))

    images = page.compare.images
    event = part.compare.click(
        compare_cells,
        {page.session, page.compare.own_text, images.samples, images.guidance, *part.inputs},
        part.outputs,
        api_visibility="private",
        show_progress_on=part.ratios,
        **ACCELERATOR,
    )
    page.stoppable.append(event)
    page.save_with(part.save.click(save, None, {page.download}, **LIVE))
    part.open.upload(open_cells, {page.session, part.open}, part.outputs, **LIVE)
