"""Step 4: carry the plan out."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from numprune.models import Model
from numprune.recipe import Recipe
from numprune.ui import html
from numprune.ui.figures import error_bars
from numprune.ui.page import ACCELERATOR, Updates, owner_of
from numprune.ui.workbench import Session, reporter

if TYPE_CHECKING:
    from numprune.ui.page import Page


@dataclass
class PruneStep:
    """Components of step 4."""

    compensate: gr.Checkbox
    damping: gr.Number
    button: gr.Button
    summary: gr.HTML
    errors: gr.Plot
    repeat: gr.Code
    recipe: gr.Code

    @property
    def outputs(self) -> set[Any]:
        return {self.summary, self.errors, self.repeat, self.recipe}

    def show(self, pruned: Model) -> Updates:
        report, recipe = pruned.report, pruned.recipe
        touched = [module for module in report.modules if module.kept < module.units]
        before, after = (
            sum(getattr(module, name) for module in touched) / max(len(touched), 1)
            for name in ("error_before", "error_after")
        )
        items = [
            (f"{report.parameters_after:,}", f"parameters, counted; were {report.parameters_before:,}"),
            (html.memory(report.bytes_after), f"weights, were {html.memory(report.bytes_before)}"),
            (f"{before:.3f} → {after:.3f}", f"mean relative output error, {len(touched)} modules"),
            (f"{report.seconds:.1f} s", f"on {report.device} in {report.dtype}"),
        ]
        return {
            self.summary: html.cards(items) + html.notes(report.notes),
            self.errors: gr.Plot(error_bars(report.to_pandas()), visible=bool(touched)),
            self.repeat: gr.Code(command_line(recipe), visible=True),
            self.recipe: gr.Code(recipe.to_json(), visible=True),
        }

    def clear(self) -> Updates:
        return {
            self.summary: html.empty("Press Prune to make the smaller model; the dense one stays as it is."),
            self.errors: gr.Plot(None, visible=False),
            self.repeat: gr.Code(visible=False),
            self.recipe: gr.Code(visible=False),
        }


def command_line(recipe: Recipe) -> str:
    """The command that repeats the recipe; with settings only a file can hold, the one that reads it."""
    if recipe.keep or recipe.prune:
        return "numprune prune --recipe recipe.json --out pruned"
    words = ["numprune", "prune", str(recipe.model), "--ratio", f"{recipe.ratio:g}"]
    calibration = recipe.calibration
    words += ["--calibration", str(calibration.data), "--samples", str(calibration.samples)]
    words += ["--sequence-length", str(calibration.sequence_length), "--seed", str(calibration.seed)]
    words += ["--allocation", recipe.allocation, "--compensation", recipe.compensation]
    words += ["--damping", f"{recipe.damping:g}"]
    for key, ratio in sorted(recipe.ratios.items()):
        words += ["--set", f"{key}={ratio:g}"]
    return shlex.join([*words, "--out", "pruned"])


def build() -> PruneStep:
    with gr.Column(elem_classes="np-step"):
        gr.Markdown("## 4 · Prune\nCut the projections and let the kept weights make up for what is gone.")
        with gr.Row():
            compensate = gr.Checkbox(
                True, label="Compensation", info="Refit o_proj and down_proj in closed form on the calibration text."
            )
            damping = gr.Number(
                0.01, minimum=0, label="Damping", info="Share of the mean diagonal added to the Gram matrix."
            )
            button = gr.Button("Prune", variant="primary", elem_id="np-prune")
        summary = gr.HTML(html.empty("Press Prune to make the smaller model; the dense one stays as it is."))
        errors = gr.Plot(label="Output error of every module", visible=False)
        repeat = gr.Code(
            label="The same from the command line",
            language="shell",
            visible=False,
            interactive=False,
            wrap_lines=True,
            lines=2,
            show_line_numbers=False,
        )
        recipe = gr.Code(label="Recipe", language="json", visible=False, interactive=False, max_lines=12)
    return PruneStep(compensate, damping, button, summary, errors, repeat, recipe)


def wire(page: Page) -> None:
    step = page.prune

    def carry_out(
        compensate: bool,
        damping: float,
        session: Session,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        with page.job(request) as cancel:
            recipe = session.recipe.replace(compensation="paper" if compensate else "none", damping=float(damping))
            done = page.workbench.prune(
                replace(session, recipe=recipe), owner_of(request), progress=reporter(bar), cancel=cancel
            )
            return {page.session: done, **step.show(page.workbench.pruned(done)), **page.compare.clear()}

    step.button.click(
        carry_out,
        [step.compensate, step.damping, page.session],
        {page.session, *step.outputs, *page.compare.outputs},
        api_visibility="private",
        show_progress_on=step.summary,
        **ACCELERATOR,
    )
