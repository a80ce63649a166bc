"""Step 3: choose how much goes, overall and layer by layer, and see at once what would be left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import pandas as pd

from numprune.allocation import PruningPlan
from numprune.errors import InputError, NumpruneError
from numprune.models import Kind, ModuleKey
from numprune.ui import html
from numprune.ui.page import Updates, toasts
from numprune.ui.workbench import Loaded, Session

if TYPE_CHECKING:
    from numprune.ui.page import Page

COLUMNS = ["Layer", "Attention ratio", "MLP ratio", "Heads kept", "Channels kept", "Set by hand"]
RATIO_COLUMNS: dict[int, Kind] = {1: "attention", 2: "mlp"}
RULES = [
    ("one threshold for all (global)", "global"),
    ("same ratio everywhere (uniform)", "uniform"),
    ("as printed in the paper", "paper_printed"),
]


@dataclass
class TuneStep:
    """Components of step 3."""

    ratio: gr.Slider
    rule: gr.Radio
    table: gr.Dataframe
    clear: gr.Button
    prediction: gr.HTML

    @property
    def inputs(self) -> set[Any]:
        return {self.ratio, self.rule}

    @property
    def outputs(self) -> set[Any]:
        return {self.table, self.prediction}

    def show(self, loaded: Loaded, plan: PruningPlan) -> Updates:
        return {self.table: ratio_table(loaded, plan), self.prediction: prediction(loaded, plan)}

    def reset(self, session: Session) -> Updates:
        return {self.ratio: session.recipe.ratio, self.rule: session.recipe.allocation}


def ratio_table(loaded: Loaded, plan: PruningPlan) -> pd.DataFrame:
    """One row per layer: the ratios the plan gives its modules, and which of them were set by hand."""
    rows = []
    for layer in range(loaded.model.layers):
        keys = {kind: ModuleKey(layer, kind) for kind in RATIO_COLUMNS.values()}
        here = {kind: key for kind, key in keys.items() if key in plan.keep}
        ratios = {kind: f"{plan.ratio(key):.3f}" for kind, key in here.items()}
        kept = {kind: f"{len(plan.keep[key])} of {plan.units[key]}" for kind, key in here.items()}
        by_hand = ", ".join(kind for kind, key in here.items() if key in plan.recipe.ratios)
        rows.append([str(layer), *(part.get(kind, "") for part in (ratios, kept) for kind in keys), by_hand])
    return pd.DataFrame(rows, columns=COLUMNS)


def prediction(loaded: Loaded, plan: PruningPlan) -> str:
    """What would be left, exact to the parameter."""
    model = loaded.model
    size = model.bytes * plan.parameters_after // plan.parameters_before
    kept_heads = sum(len(kept) for key, kept in plan.keep.items() if key.kind == "attention")
    heads = sum(units for key, units in plan.units.items() if key.kind == "attention")
    gone = 1 - plan.parameters_after / plan.parameters_before
    items = [
        (f"{plan.parameters_after:,}", f"parameters of {plan.parameters_before:,} ({-gone:.1%})"),
        (f"{plan.ratio_reached:.1%}", f"of the prunable parameters go ({plan.ratio_asked:.0%} asked for)"),
        (html.memory(size), f"weights, now {html.memory(model.bytes)}"),
        (f"{kept_heads / heads:.0%}" if heads else "none", "of the KV cache stays"),
    ]
    return html.cards(items) + html.notes(plan.notes)


def build() -> TuneStep:
    with gr.Column(elem_classes="np-step"):
        gr.Markdown("## 3 · Tune\nMove the ratio and watch the plan; edit single layers in the table.")
        with gr.Row():
            ratio = gr.Slider(
                0,
                0.9,
                0.3,
                step=0.01,
                label="Ratio",
                info="Share of the prunable parameters to remove.",
                scale=2,
                min_width=320,
            )
            rule = gr.Radio(
                RULES,
                value="global",
                label="Allocation",
                min_width=320,
                info="How layers share the ratio. Printed in the paper: counts units, hardly ever prunes heads.",
                scale=3,
            )
        prediction_panel = gr.HTML(html.empty("The plan appears here once a model is scored."))
        with gr.Accordion("Ratios per layer", open=False):
            gr.Markdown(
                "Double-click a ratio to set it by hand: 0.25 removes a quarter of that module's units. The other"
                " modules share what is left of the overall ratio. An emptied cell returns to automatic."
            )
            table = gr.Dataframe(
                headers=COLUMNS,
                datatype="str",
                column_count=len(COLUMNS),
                interactive=True,
                static_columns=[0, 3, 4, 5],
                max_height=420,
                label="Ratios per layer",
            )
            clear = gr.Button("All layers back to automatic", size="sm")
    return TuneStep(ratio, rule, table, clear, prediction_panel)


def edited(session: Session, row: int, column: int, text: str) -> Session:
    """The session after one cell of the table was edited.

    Raises:
        InputError: the cell holds no ratio, or the text is none.
    """
    if column not in RATIO_COLUMNS:
        raise InputError(f"{COLUMNS[column]} follows from the ratios; edit a ratio instead.")
    key = ModuleKey(row, RATIO_COLUMNS[column])
    ratios = dict(session.recipe.ratios)
    if not text.strip():
        ratios.pop(key, None)
    else:
        try:
            ratios[key] = float(text.strip().rstrip("%")) / (100 if text.strip().endswith("%") else 1)
        except ValueError:
            raise InputError(f"'{text}' is not a ratio; write a number such as 0.25 or 25%.") from None
    return _with(session, ratios=ratios)


def _with(session: Session, **changes: Any) -> Session:
    return Session(session.dense, session.recipe.replace(**changes), session.pruned)


def wire(page: Page) -> None:
    step = page.tune
    live = {
        "outputs": page.plan_outputs,
        "api_visibility": "private",
        "show_progress": "hidden",
        "trigger_mode": "always_last",
    }

    def replan(session: Session, view: str, order: str) -> Updates:
        return {**page.planned(session), **page.inspect.show(*_parts(session), view, order)}

    def _parts(session: Session) -> tuple[Loaded, PruningPlan]:
        return page.workbench.dense(session), page.workbench.plan(session)

    def change(ratio: float, rule: str, view: str, order: str, session: Session) -> Updates:
        with toasts():
            return replan(_with(session, ratio=float(ratio), allocation=rule), view, order)

    def edit(view: str, order: str, session: Session, event: gr.EditData) -> Updates:
        row, column = event.index
        try:
            return replan(edited(session, int(row), int(column), str(event.value)), view, order)
        except NumpruneError as error:
            # Redrawing the table from the untouched session takes the refused text off the page.
            gr.Warning(str(error), title="That did not work")
            return replan(session, view, order)

    def back_to_automatic(view: str, order: str, session: Session) -> Updates:
        with toasts():
            return replan(_with(session, ratios={}), view, order)

    drawing = [page.inspect.view, page.inspect.order, page.session]
    gr.on([step.ratio.input, step.rule.input], change, [step.ratio, step.rule, *drawing], **live)
    step.table.edit(edit, drawing, **live)
    step.clear.click(back_to_automatic, drawing, **live)
