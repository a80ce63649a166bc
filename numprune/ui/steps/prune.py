"""Step 4: carry the plan out, and keep what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from numprune.errors import InputError
from numprune.models import Model
from numprune.plan.recipe import Recipe
from numprune.plan.report import ModuleReport
from numprune.ui import html
from numprune.ui.figures import error_bars
from numprune.ui.page import ACCELERATOR, LIVE, Updates, owner_of, toasts
from numprune.ui.session import Session
from numprune.ui.workbench import reporter

if TYPE_CHECKING:
    from numprune.ui.page import Page

COMPENSATION = [
    ("as in the paper", "paper"),
    ("against the residual stream", "residual"),
    ("all linears, against the dense network", "network"),
    ("bias, as FLAP's", "bias"),
    ("none", "none"),
]
WAITING = "Press Prune to make a smaller model; the dense one stays as it is."


@dataclass
class PruneStep:
    """Components of step 4."""

    compensate: gr.Radio
    damping: gr.Number
    healing: gr.Number
    name: gr.Textbox
    button: gr.Button
    summary: gr.HTML
    chosen: gr.Dropdown
    remove: gr.Button
    errors: gr.Plot

    @property
    def inputs(self) -> set[Any]:
        return {self.compensate, self.damping, self.healing}

    @property
    def outputs(self) -> set[Any]:
        return {self.summary, self.chosen, self.remove, self.errors, self.name}

    def settings(self, recipe: Recipe) -> Updates:
        """The controls, set to a recipe that did not come from them."""
        return {self.compensate: recipe.compensation, self.damping: recipe.damping, self.healing: recipe.healing}

    def show(self, variants: Mapping[str, Model], chosen: str | None = None) -> Updates:
        """The tab's pruned models; `chosen`, or else the newest, with its errors."""
        names = list(variants)
        if not names:
            return {
                self.summary: html.empty(WAITING),
                self.chosen: gr.Dropdown([], value=None, visible=False),
                self.remove: gr.Button(visible=False),
                self.errors: gr.Plot(None, visible=False),
                self.name: "",
            }
        chosen = chosen if chosen in names else names[-1]
        pruned = variants[chosen]
        return {
            self.summary: variants_table(variants) + small_print(pruned),
            self.chosen: gr.Dropdown(names, value=chosen, visible=True),
            self.remove: gr.Button(visible=True),
            self.errors: gr.Plot(
                error_bars(pruned.report.to_pandas()),
                label=f"Output error of every module of '{chosen}'",
                visible=bool(touched(pruned)),
            ),
            self.name: "",
        }


def touched(pruned: Model) -> list[ModuleReport]:
    return [module for module in pruned.report.modules if module.kept < module.units]


def variants_table(variants: Mapping[str, Model]) -> str:
    """One row per pruned model, measured."""
    rows = []
    for name, pruned in variants.items():
        report, modules = pruned.report, touched(pruned)
        before, after = (
            sum(getattr(module, which) for module in modules) / max(len(modules), 1)
            for which in ("error_before", "error_after")
        )
        rows.append(
            (
                name,
                f"{pruned.parameters:,} ({pruned.parameters / report.parameters_before - 1:+.1%})",
                html.memory(pruned.bytes),
                f"{before:.3f} → {after:.3f}" if report.modules else "—",
                f"{report.seconds:.1f} s",
            )
        )
    header = ["Pruned model", "Parameters, counted", "Weights", "Mean output error, without → with", "Time"]
    return html.table(header, rows)


def small_print(pruned: Model) -> str:
    report = pruned.report
    place = f"Time on {report.device} in {report.dtype}."
    if report.modules:
        place = (
            f"Output error: relative, on the calibration text, mean over the {len(touched(pruned))} modules that lost"
            f" units, without compensation and as pruned. {place}"
        )
    return html.notes([place, *report.notes])


def build() -> PruneStep:
    with gr.Column(elem_classes="np-step"):
        gr.Markdown("## 4 · Prune\nCut the projections and let the kept weights make up for what is gone.")
        with gr.Row():
            compensate = gr.Radio(
                COMPENSATION,
                value="paper",
                label="Compensation",
                info="Refit o_proj and down_proj in closed form, each module alone or each after the ones before it.",
                min_width=320,
            )
            damping = gr.Number(
                0.01, minimum=0, label="Damping", info="Share of the mean diagonal added to the Gram matrix."
            )
            healing = gr.Number(
                0,
                precision=0,
                minimum=0,
                label="Healing steps",
                info="Training after pruning, apart from the method: 16 is a good number, 0 trains nothing.",
            )
            name = gr.Textbox(
                "", label="Name", placeholder="30% balanced", info="What to call the result; every result is kept."
            )
            button = gr.Button("Prune", variant="primary", elem_id="np-prune", min_width=160)
        summary = gr.HTML(html.empty(WAITING))
        with gr.Row():
            chosen = gr.Dropdown(
                [], label="Errors of", info="Each module's output error on the calibration text.", visible=False
            )
            remove = gr.Button("Remove this pruned model", size="sm", visible=False)
        errors = gr.Plot(label="Output error of every module", visible=False)
    return PruneStep(compensate, damping, healing, name, button, summary, chosen, remove, errors)


def wire(page: Page) -> None:
    step = page.prune

    def carry_out(
        name: str,
        session: Session,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        owner = owner_of(request)
        with page.job(request) as cancel:
            page.workbench.prune(session, owner, name=name or "", progress=reporter(bar), cancel=cancel)
            return page.kept(session, owner)

    def choose(chosen: str, request: gr.Request) -> Updates:
        with toasts():
            return step.show(page.workbench.variants(owner_of(request)), chosen)

    def remove(chosen: str, session: Session, request: gr.Request) -> Updates:
        owner = owner_of(request)
        with toasts():
            page.workbench.remove(owner, chosen)
            return page.kept(session, owner)

    def compensate(given: Updates) -> Updates:
        with toasts():
            damping = given[step.damping]
            if damping is None:
                raise InputError("There is no damping; give 0 or a positive fraction such as 0.01.")
            method = given[step.compensate]
            changes = {"compensation": method, "damping": float(damping), "healing": int(given[step.healing] or 0)}
            session = given[page.session].changed("", **changes)
            return page.planned(session, given)

    gr.on(
        [step.compensate.input, *(event for box in (step.damping, step.healing) for event in (box.submit, box.blur))],
        compensate,
        {*page.look, *step.inputs},
        page.plan_outputs,
        **LIVE,
    )
    event = step.button.click(
        carry_out,
        [step.name, page.session],
        page.kept_outputs,
        api_visibility="private",
        show_progress_on=step.summary,
        **ACCELERATOR,
    )
    page.stoppable.append(event)
    step.chosen.input(choose, step.chosen, step.outputs, **LIVE)
    step.remove.click(remove, [step.chosen, page.session], page.kept_outputs, **LIVE)
