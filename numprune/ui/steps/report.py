"""Step 7: the numbers behind the pictures, and one HTML page of the session to hand around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
import pandas as pd

from numprune.errors import InputError
from numprune.models import Model
from numprune.plan.keys import KINDS
from numprune.plan.plan import PruningPlan
from numprune.scoring import ScoreTable
from numprune.ui.figures import error_bars
from numprune.ui.heatmap import Scale, score_heatmap
from numprune.ui.page import ACCELERATOR, LIVE, Updates, owner_of, toasts
from numprune.ui.ratios import ratios_by_layer
from numprune.ui.report import Section, environment, report_html
from numprune.ui.score_figures import layer_profile, ratio_bars, score_distribution
from numprune.ui.session import Session
from numprune.ui.steps.compare import BY_RATIO, DISTRIBUTIONS, MEASURED, TEXTS
from numprune.ui.steps.inspect import SELECTED, cut_of, rows_of, together
from numprune.ui.steps.load import facts
from numprune.ui.steps.methods import BY_METHOD
from numprune.ui.steps.prune import small_print, touched, variants_table
from numprune.ui.steps.rivals import COMPARED, LISTED, Rivalry
from numprune.ui.steps.tune import SENSITIVITY, command_line, prediction
from numprune.ui.workbench import Finding, Loaded

if TYPE_CHECKING:
    from numprune.ui.page import Page


@dataclass
class ReportStep:
    """Components of step 7."""

    which: gr.Dropdown
    table: gr.Dataframe
    save: gr.Button
    make: gr.Button


LAYERS, UNITS, ERRORS = "Every layer", "Every unit", "Output errors"
MEASUREMENTS = {
    SENSITIVITY: "press Suggest ratios in step 3",
    COMPARED: "press Compare scores in step 2",
    SELECTED: "click a cell of a heatmap in step 2",
    TEXTS: "press Write side by side in step 5",
    MEASURED: "press Measure in step 5",
    DISTRIBUTIONS: "press Compare next-token distributions in step 5",
    BY_METHOD: "press Compare methods in step 5",
    BY_RATIO: "press Speed and memory by ratio in step 5",
}
ROWS_SHOWN = 2000


def numbers(
    which: str,
    loaded: Loaded,
    plan: PruningPlan,
    variants: Mapping[str, Model],
    findings: Mapping[str, Finding],
    rival: ScoreTable | None = None,
) -> pd.DataFrame:
    """The table behind a picture.

    Raises:
        InputError: there is no such table yet.
    """
    if which in (LAYERS, UNITS):
        units = loaded.scores.to_pandas()
        units["kept"] = ~np.concatenate([plan.removed(key) for key in loaded.scores.modules])
        if which == UNITS:
            return units
        scores = units.groupby(["layer", "module"], sort=False)["score"].describe(percentiles=[0.05, 0.5, 0.95])
        scores = scores.drop(columns=["count", "std"]).add_prefix("score_").reset_index()
        return plan.to_pandas().merge(scores)
    if which == ERRORS:
        if not variants:
            raise InputError("There is no pruned model yet; press Prune in step 4.")
        reports = [model.report.to_pandas().assign(model=name) for name, model in variants.items()]
        return pd.concat(reports, ignore_index=True)
    if which == COMPARED and rival is not None:
        return Rivalry.at(loaded, plan, rival).table()
    if which not in findings:
        raise InputError(f"There are no numbers of '{which}' yet; {MEASUREMENTS.get(which, 'choose another table')}.")
    return findings[which].table


def build() -> ReportStep:
    with gr.Column(elem_classes="np-step"):
        gr.Markdown(
            "## 7 · Numbers and report\nThe table behind every picture, and one self-contained page of the session:"
            " pictures, plan, results, recipe and machine."
        )
        with gr.Row():
            which = gr.Dropdown(
                [LAYERS, UNITS, ERRORS, *MEASUREMENTS],
                value=None,
                label="Table",
                info=f"The page shows at most {ROWS_SHOWN:,} rows, rounded; the CSV file has everything.",
                scale=3,
                min_width=300,
            )
            with gr.Column(min_width=160):
                save = gr.Button("Download as CSV", size="sm")
                make = gr.Button("Download the report", variant="primary", size="sm", elem_id="np-report")
        table = gr.Dataframe(interactive=False, label="Numbers", max_height=360, visible=False, elem_classes="np-grid")
    return ReportStep(which, table, save, make)


def session_report(
    loaded: Loaded,
    plan: PruningPlan,
    variants: Mapping[str, Model],
    findings: Mapping[str, Finding],
    rival: ScoreTable | None = None,
    also: ScoreTable | None = None,
) -> str:
    """The report of one tab: what it has open, plans, pruned and found. `also` are scores the plan does not go by."""
    by_layer = [ratios_by_layer(plan, loaded.model.layers, kind) for kind in KINDS]
    recipe = plan.recipe
    body: list[Any]
    sections = [
        Section("Model", [facts(loaded)]),
        *(
            Section(f"Scores ({scores.scorer})", score_pictures(replace(loaded, scores=scores), plan))
            for scores in (also, loaded.scores)
            if scores is not None
        ),
        Section(
            "Plan",
            [prediction(loaded, plan), ratio_bars(*(part[0] for part in by_layer), *(part[1] for part in by_layer))],
        ),
    ]
    if rival is not None:
        found = Rivalry.at(loaded, plan, rival)
        title = f"{COMPARED}: {' and '.join(found.names)}"
        body = [*found.pictures().values(), found.figures(), found.disputed().head(LISTED)]
        sections.append(Section(title, body))
    if variants:
        newest = next(reversed(variants))
        body = [variants_table(variants), small_print(variants[newest])]
        if touched(variants[newest]):
            body += [
                f"<p>Output error of every module of '{escape(newest)}':</p>",
                error_bars(variants[newest].report.to_pandas()),
            ]
        sections.append(Section("Pruned models", body))
    sections += [Section(title, list(finding.parts)) for title, finding in findings.items()]
    sections.append(
        Section(
            "Recipe",
            [
                f"<p>The same from the command line:</p><pre>{escape(command_line(recipe))}</pre>",
                f"<pre>{escape(recipe.to_json())}</pre>",
                *(
                    f"<p>Recipe of '{escape(n)}':</p><pre>{escape(m.recipe.to_json())}</pre>"
                    for n, m in variants.items()
                ),
            ],
        )
    )
    shown = {"Model": loaded.model.name, "Made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")}
    return report_html(sections, title=f"numprune: {loaded.model.name}", facts={**shown, **environment()})


def score_pictures(loaded: Loaded, plan: PruningPlan) -> list[Any]:
    """Heatmaps, distribution and profile of the scores of `loaded`."""
    heads, channels = rows_of(loaded, plan, "attention"), rows_of(loaded, plan, "mlp")
    cut = cut_of(loaded, plan)
    scale = Scale.of([heads, channels], "raw", cut)
    return [
        score_heatmap(heads, scale, order="index", title=f"Attention: layer x {heads.name}, {loaded.scores.scorer}"),
        score_heatmap(channels, scale, order="sorted", title=f"MLP: layer x channel, {loaded.scores.scorer}"),
        score_distribution(together(heads.scores), together(channels.scores), cut),
        layer_profile(heads.scores, channels.scores),
    ]


def wire(page: Page) -> None:
    step = page.report

    def numbers_of(which: str, session: Session, owner: str) -> pd.DataFrame:
        bench = page.workbench
        loaded, plan = bench.dense(session), bench.plan(session)
        return numbers(which, loaded, plan, bench.variants(owner), bench.findings(owner), bench.rival(session))

    def show(which: str, session: Session, request: gr.Request) -> Updates:
        with toasts():
            table = numbers_of(which, session, owner_of(request))
            return {step.table: gr.Dataframe(table.head(ROWS_SHOWN).round(5), label=which, visible=True)}

    def save(which: str, session: Session, request: gr.Request) -> Updates:
        with toasts():
            if not which:
                raise InputError("No table is chosen; choose one beside the button.")
            table = numbers_of(which, session, owner_of(request))
            return page.offer(owner_of(request), f"{session.recipe.model}-{which}.csv", table.to_csv(index=False))

    def make(session: Session, request: gr.Request) -> Updates:
        owner = owner_of(request)
        with page.job(request):
            bench = page.workbench
            loaded, opened = bench.dense(session), bench.opened(session)
            text = session_report(
                loaded,
                bench.plan(session),
                bench.variants(owner),
                bench.findings(owner),
                bench.rival(session),
                None if opened is loaded else opened.scores,
            )
            return page.offer(owner, f"numprune-{session.recipe.model}.html", text)

    step.which.input(show, [step.which, page.session], {step.table}, **LIVE)
    page.save_with(step.save.click(save, [step.which, page.session], {page.download}, **LIVE))
    page.save_with(step.make.click(make, [page.session], {page.download}, api_visibility="private", **ACCELERATOR))
