"""The rail at the left: how much goes and by which method, what that costs, and the button that carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from numprune.plan.presets import DEFAULT_PRESET, METHODS, method_of
from numprune.ui.edits import ALLOCATIONS, allocation_of
from numprune.ui.shared import Shared, Updates, View

JS = (Path(__file__).parent / "rail.js").read_text(encoding="utf8")
COMPENSATIONS = [
    ("as in the paper", "paper"),
    ("against the residual stream", "residual"),
    ("all linears, against the dense network", "network"),
    ("bias, as FLAP's", "bias"),
    ("none", "none"),
]
DEPTH_WORDS = [
    ("only what is dropped by hand", "none"),
    ("attentions and MLPs, where that costs less", "modules"),
    ("layers, where that costs less", "layers"),
]
BY_HAND = "by hand"
"""What the method is called when no method has these settings."""
ROUNDINGS = [1, 8, 32, 64, 128, 256]


@dataclass
class Rail:
    """Components of the rail."""

    method: gr.Dropdown
    ratio: gr.Slider
    speedup: gr.Number
    frontier: gr.HTML
    undo: gr.Button
    redo: gr.Button
    reset: gr.Button
    prune: gr.Button
    name: gr.Textbox
    suggest: gr.Button
    settings: dict[str, Any]

    @property
    def controls(self) -> set[Any]:
        """What shows the recipe."""
        return {self.method, self.ratio, self.speedup, *self.settings.values()}


def build(shared: Shared) -> Rail:
    method = gr.Dropdown(
        [(name, name) for name in METHODS],
        value=DEFAULT_PRESET,
        label="Method",
        elem_id="np-method",
        filterable=False,
        buttons=[],
    )
    ratio = gr.Slider(0, 0.9, 0.3, step=0.01, label="Ratio", elem_id="np-ratio", buttons=[])
    speedup = gr.Number(
        None, minimum=1, step=0.1, label="Times as fast, decoding here", elem_id="np-speedup", visible=False
    )
    frontier = gr.HTML(
        "",
        html_template="<div class='np-frontier'></div><div class='np-budget'></div>",
        js_on_load=JS,
        points=[],
        elem_id="np-rail-figures",
    )
    with gr.Row(elem_id="np-steps"):
        undo = gr.Button("↶ Undo", size="sm", min_width=60)
        redo = gr.Button("↷ Redo", size="sm", min_width=60)
        reset = gr.Button("Reset", size="sm", min_width=60)
    prune = gr.Button("Prune and compare", variant="primary", elem_id="np-prune")
    with gr.Accordion("More", open=False, elem_id="np-more"):
        settings: dict[str, Any] = {
            "allocation": gr.Dropdown(
                [(label, name) for name, label in ALLOCATIONS.items()], value="global", label="Allocation"
            ),
            "compensation": gr.Dropdown(COMPENSATIONS, value="network", label="Compensation"),
            "damping": gr.Number(0.01, minimum=0, label="Damping"),
            "healing": gr.Number(0, precision=0, minimum=0, label="Healing steps"),
            "round_channels": gr.Dropdown(ROUNDINGS, value=1, label="Round channels to multiples of"),
            "depth": gr.Dropdown(DEPTH_WORDS, value="none", label="Let go as a whole"),
            "uniform": gr.Checkbox(False, label="The same counts in every layer"),
        }
        suggest = gr.Button("Suggest ratios by the model's own loss", size="sm")
        name = gr.Textbox("", label="Name of the result", placeholder="30% balanced")
    rail = Rail(method, ratio, speedup, frontier, undo, redo, reset, prune, name, suggest, settings)
    shared.redraw("planned", rail.controls, lambda view: shown(rail, view))
    for moment in ("opened", "kept", "measured"):
        shared.redraw(moment, {frontier}, lambda view: {frontier: gr.HTML(points=points(view))})
    shared.redraw("opened", {prune, suggest}, lambda view: working(rail, view))
    shared.later(lambda: _wire(rail))
    return rail


def shown(rail: Rail, view: View) -> Updates:
    """The controls, set to the recipe."""
    recipe = view.session.recipe
    method = method_of(recipe)
    choices = [*METHODS, *([] if method else [BY_HAND])]
    names = ("compensation", "damping", "healing", "round_channels", "depth", "uniform")
    return {
        rail.method: gr.Dropdown([(each, each) for each in choices], value=method or BY_HAND),
        rail.ratio: recipe.ratio,
        rail.speedup: gr.Number(recipe.speedup, visible=recipe.speedup is not None),
        rail.settings["allocation"]: allocation_of(recipe, view.loaded.scores),
        **{rail.settings[name]: getattr(recipe, name) for name in names},
    }


def working(rail: Rail, view: View) -> Updates:
    """The buttons that need weights are off where there are none."""
    here = view.loaded.weights.elsewhere is None
    return {rail.prune: gr.Button(interactive=here), rail.suggest: gr.Button(interactive=here)}


def points(view: View) -> list[dict[str, Any]]:
    """The measured losses, as the frontier draws them."""
    return [
        {
            "name": point.name,
            "reached": point.reached,
            "loss": point.loss,
            "recipe": None if point.recipe is None else point.recipe.to_dict(),
        }
        for point in view.points
    ]


def _wire(rail: Rail) -> None:
    """Every control sends an edit; nothing here waits for the server."""

    def sends(event: Any, inputs: Any, edit: str) -> None:
        script = f"(value) => {{ document.dispatchEvent(new CustomEvent('np-edit', {{ detail: {edit} }})); }}"
        event(None, inputs, None, js=script, api_visibility="private", queue=False)

    sends(rail.ratio.input, rail.ratio, "{ kind: 'ratio', ratio: value }")
    sends(rail.method.input, rail.method, "{ kind: 'method', method: value }")
    sends(rail.settings["allocation"].input, rail.settings["allocation"], "{ kind: 'allocation', allocation: value }")
    for name in ("compensation", "round_channels", "depth", "uniform"):
        sends(rail.settings[name].input, rail.settings[name], f"{{ kind: 'settings', name: '{name}', value }}")
    for name in ("damping", "healing"):
        for event in (rail.settings[name].submit, rail.settings[name].blur):
            sends(event, rail.settings[name], f"{{ kind: 'settings', name: '{name}', value }}")
    for event in (rail.speedup.submit, rail.speedup.blur):
        sends(event, rail.speedup, "{ kind: 'speedup', speedup: value }")
    for button, kind in ((rail.undo, "undo"), (rail.redo, "redo"), (rail.reset, "reset"), (rail.suggest, "suggest")):
        sends(button.click, None, f"{{ kind: '{kind}' }}")
