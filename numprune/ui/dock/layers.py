"""The layers as a table: the map's twin for the keyboard and for numbers, and what each module costs alone."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from numprune.ui import numbers
from numprune.ui.channel import SENSITIVITY
from numprune.ui.shared import Shared, Updates, View

JS, CSS = ((Path(__file__).parent / f"layers.{kind}").read_text(encoding="utf8") for kind in ("js", "css"))


def build(shared: Shared) -> None:
    gr.HTML("", html_template="<div class='np-ratios'></div>", js_on_load=JS, elem_id="np-ratios")
    numbers.build(shared, {SENSITIVITY: numbers.found(SENSITIVITY, "press Suggest ratios under More")})
    curves = gr.Plot(show_label=True, label="What each module costs alone", visible=False)

    def sensed(view: View) -> Updates:
        found = view.findings.get(SENSITIVITY)
        return {curves: gr.Plot(None if found is None else found.parts[0], visible=found is not None)}

    for moment in ("opened", "sensed"):
        shared.redraw(moment, {curves}, sensed)
