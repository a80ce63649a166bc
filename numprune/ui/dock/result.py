"""The result: what the dense and the newest pruned model make, with their figures, and every module's error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gradio as gr

from numprune.models.dtypes import dtype_name
from numprune.plan.report import ModuleReport
from numprune.ui import html, numbers
from numprune.ui.figures import error_bars
from numprune.ui.making import MEASURED, TEXTS
from numprune.ui.shared import Shared, Updates, View
from numprune.ui.side import PAIR, side_by_side

if TYPE_CHECKING:
    from numprune.models import Model


WAITING = (
    "Press Prune and compare: the dense and the pruned model make the same thing here, with what the pruning cost and"
    " gained."
)


@dataclass
class Result:
    """Components of the result."""

    columns: gr.HTML
    print: gr.HTML
    errors: gr.Plot
    part: gr.Accordion


def build(shared: Shared) -> Result:
    columns = gr.HTML(html.empty(WAITING), js_on_load=PAIR, elem_id="np-result")
    small = gr.HTML("", elem_id="np-pruned")
    numbers.build(
        shared,
        {
            "Texts": numbers.found(TEXTS, "let models write"),
            "Figures": numbers.found(MEASURED, "measure models"),
            "Output errors": numbers.errors,
        },
    )
    with gr.Accordion("Output error of every module", open=False, visible=False) as part:
        errors = gr.Plot(show_label=False, label="Output error of every module")
    result = Result(columns, small, errors, part)
    shared.redraw("opened", {columns, small, errors, part}, lambda view: shown(result, view))
    shared.redraw("kept", {columns, small, errors, part}, lambda view: shown(result, view))
    shared.redraw("compared", {columns}, lambda view: {columns: compared(view)})
    return result


def compared(view: View) -> str:
    """The newest pruned model beside the dense one."""
    variants = view.variants
    newest = next(reversed(variants), None)
    if newest is None:
        return waiting(view)
    return side_by_side(view, [newest], figures=False) or pruned(newest)


def waiting(view: View) -> str:
    """What to do for a result; why there is none where weights are elsewhere."""
    return html.empty(view.loaded.weights.elsewhere or WAITING)


def pruned(name: str) -> str:
    return html.empty(f"{name} is pruned; its text and figures follow.")


def shown(result: Result, view: View) -> Updates:
    variants = view.variants
    if not variants:
        empty = {result.print: "", result.errors: gr.Plot(None), result.part: gr.Accordion(visible=False)}
        return {result.columns: waiting(view), **empty}
    newest = next(reversed(variants))
    model = variants[newest]
    return {
        result.columns: compared(view),
        result.print: small_print(newest, model),
        result.errors: gr.Plot(error_bars(model.report.to_pandas()) if touched(model) else None),
        result.part: gr.Accordion(visible=bool(touched(model))),
    }


def touched(pruned: Model) -> list[ModuleReport]:
    """The modules that lost units."""
    return [module for module in pruned.report.modules if module.kept < module.units]


def small_print(name: str, pruned: Model) -> str:
    """What pruning did, in a line, and what there is to know of it."""
    report, modules = pruned.report, touched(pruned)
    line = (
        f"{name}: {pruned.parameters:,} parameters counted"
        f" ({pruned.parameters / report.parameters_before - 1:+.1%}), pruned in {report.seconds:.1f} s on"
        f" {report.device} in {dtype_name(pruned.dtype)}."
    )
    if modules:
        before, after = (
            sum(getattr(module, which) for module in modules) / len(modules)
            for which in ("error_before", "error_after")
        )
        line += (
            f" Relative output error on the calibration text, mean over {len(modules)} modules: {before:.3f} without"
            f" compensation, {after:.3f} as pruned."
        )
    return html.notes([line, *report.notes])


def variants_table(variants: Mapping[str, Model]) -> str:
    """One row per pruned model, measured."""
    rows = []
    for name, model in variants.items():
        report, modules = model.report, touched(model)
        before, after = (
            sum(getattr(module, which) for module in modules) / max(len(modules), 1)
            for which in ("error_before", "error_after")
        )
        rows.append(
            (
                name,
                f"{model.parameters:,} ({model.parameters / report.parameters_before - 1:+.1%})",
                html.memory(model.bytes),
                f"{before:.3f} → {after:.3f}" if report.modules else "—",
                f"{report.seconds:.1f} s",
            )
        )
    header = ["Pruned model", "Parameters, counted", "Weights", "Mean output error, without → with", "Time"]
    return html.table(header, rows)
