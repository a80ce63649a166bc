"""Step 2: see what every head and channel is worth, and what the plan removes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from numprune.allocation import PruningPlan
from numprune.models import Kind, ModuleKey
from numprune.ui.figures import attention_heatmap, channel_heatmap
from numprune.ui.page import Updates, toasts
from numprune.ui.steps.load import unit_name
from numprune.ui.workbench import Loaded, Session

if TYPE_CHECKING:
    from numprune.ui.page import Page


@dataclass
class InspectStep:
    """Components of step 2."""

    view: gr.Radio
    order: gr.Radio
    heads: gr.Plot
    channels: gr.Plot

    @property
    def outputs(self) -> set[Any]:
        return {self.heads, self.channels}

    def show(self, loaded: Loaded, plan: PruningPlan, view: str = "raw", order: str = "sorted") -> Updates:
        scores, pruned = rows_of(loaded, plan, "attention")
        heads = attention_heatmap(scores, pruned, view=view, unit=unit_name(loaded))
        channels = channel_heatmap(*rows_of(loaded, plan, "mlp"), view=view, order=order)
        return {self.heads: heads, self.channels: channels}


def rows_of(loaded: Loaded, plan: PruningPlan, kind: Kind) -> tuple[list[np.ndarray | None], list[np.ndarray | None]]:
    """Scores, and whether the plan prunes them, one array per layer; None where a layer has no such module."""
    scores: list[np.ndarray | None] = []
    pruned: list[np.ndarray | None] = []
    for layer in range(loaded.model.layers):
        module = loaded.scores.modules.get(ModuleKey(layer, kind))
        if module is None:
            scores.append(None)
            pruned.append(None)
            continue
        gone = np.ones(len(module.units), dtype=bool)
        gone[list(plan.keep[ModuleKey(layer, kind)])] = False
        scores.append(module.units)
        pruned.append(gone)
    return scores, pruned


def build() -> InspectStep:
    with gr.Column(elem_classes="np-step"):
        gr.Markdown(
            "## 2 · Inspect\nEach cell is a Newton numerical score: how much the layer's output misses that head or"
            " channel. Bright stays, dark can go."
        )
        with gr.Row():
            view = gr.Radio(
                [("score", "raw"), ("rank in the layer", "rank")],
                value="raw",
                label="Colour",
                min_width=320,
                info="Scores of all layers on one scale, clipped at the 5th percentile, or ranks inside each layer.",
            )
            order = gr.Radio(
                [("by score", "sorted"), ("by index", "index")],
                value="sorted",
                label="Channels",
                min_width=320,
                info="By score: left of the white line is pruned. By index: pruned channels are blank.",
            )
        with gr.Row():
            heads = gr.Plot(label="Attention: layer x head (crosses are pruned)", scale=2, min_width=320)
            channels = gr.Plot(label="MLP: layer x channel", scale=3, min_width=320)
    return InspectStep(view, order, heads, channels)


def wire(page: Page) -> None:
    step = page.inspect

    def redraw(view: str, order: str, session: Session) -> Updates:
        with toasts():
            return step.show(page.workbench.dense(session), page.workbench.plan(session), view, order)

    gr.on(
        [step.view.input, step.order.input],
        redraw,
        [step.view, step.order, page.session],
        step.outputs,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
    )
