"""Step 6: one HTML page of the session, to hand around."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from numprune.allocation import PruningPlan
from numprune.models import Model
from numprune.models.adapter import KINDS
from numprune.ui.figures import error_bars, layer_profile, ratio_bars, score_distribution
from numprune.ui.heatmap import Scale, score_heatmap
from numprune.ui.page import ACCELERATOR, Updates, owner_of
from numprune.ui.ratios import ratios_by_layer
from numprune.ui.report import Section, environment, report_html
from numprune.ui.steps.inspect import rows_of, together
from numprune.ui.steps.load import facts
from numprune.ui.steps.prune import small_print, touched, variants_table
from numprune.ui.steps.tune import command_line, prediction
from numprune.ui.workbench import Loaded

if TYPE_CHECKING:
    from numprune.ui.page import Page


@dataclass
class ReportStep:
    """Components of step 6."""

    make: gr.Button


def build() -> ReportStep:
    with gr.Column(elem_classes="np-step"):
        gr.Markdown(
            "## 6 · Report\nOne self-contained HTML page: the pictures, the plan, every result above, the recipe and"
            " the machine."
        )
        make = gr.Button("Download the report", variant="secondary", elem_id="np-report")
    return ReportStep(make)


def session_report(
    loaded: Loaded, plan: PruningPlan, variants: Mapping[str, Model], findings: Mapping[str, tuple[Any, ...]]
) -> str:
    """The report of one tab: what it has open, plans, pruned and found."""
    heads, channels = rows_of(loaded, plan, "attention"), rows_of(loaded, plan, "mlp")
    scale = Scale.of([heads, channels], "raw", plan.threshold)
    by_layer = [ratios_by_layer(plan, loaded.model.layers, kind) for kind in KINDS]
    recipe = plan.recipe
    sections = [
        Section("Model", [facts(loaded)]),
        Section(
            "Scores",
            [
                score_heatmap(heads, scale, order="index", title=f"Attention: layer x {heads.name.lower()}"),
                score_heatmap(channels, scale, order="sorted", title="MLP: layer x channel"),
                score_distribution(together(heads.scores), together(channels.scores), plan.threshold),
                layer_profile(heads.scores, channels.scores),
            ],
        ),
        Section(
            "Plan",
            [prediction(loaded, plan), ratio_bars(*(part[0] for part in by_layer), *(part[1] for part in by_layer))],
        ),
    ]
    if variants:
        newest = next(reversed(variants))
        body: list[Any] = [variants_table(variants), small_print(variants[newest])]
        if touched(variants[newest]):
            body += [
                f"<p>Output error of every module of '{escape(newest)}':</p>",
                error_bars(variants[newest].report.to_pandas()),
            ]
        sections.append(Section("Pruned models", body))
    sections += [Section(title, list(parts)) for title, parts in findings.items()]
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


def wire(page: Page) -> None:
    def make(given: Updates, request: gr.Request) -> Updates:
        owner, session = owner_of(request), given[page.session]
        with page.job(request):
            loaded, plan = page.workbench.dense(session), page.workbench.plan(session)
            text = session_report(loaded, plan, page.workbench.variants(owner), page.workbench.findings(owner))
            return page.offer(f"numprune-{loaded.model.name}.html", text)

    page.save_with(
        page.report.make.click(make, {page.session}, {page.download}, api_visibility="private", **ACCELERATOR)
    )
