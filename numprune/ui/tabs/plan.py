"""The plan: the map, and below it what one wants to know of it."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from numprune.ui import map
from numprune.ui.dock import distribution, layers, result, rivals, unit
from numprune.ui.session import Dock
from numprune.ui.shared import QUICK, Shared, Updates, owner_of, toasts

PARTS: tuple[tuple[Dock, str], ...] = (
    ("result", "Result"),
    ("unit", "Unit"),
    ("layers", "Layers as table"),
    ("distribution", "Distribution"),
    ("rivals", "Other scorer"),
)


@dataclass
class PlanTab:
    """Parts other parts of the page know: the row of parts below the map, and the result among them."""

    dock: gr.Tabs
    result: result.Result


def build(shared: Shared) -> PlanTab:
    map_ = map.build(shared)
    with gr.Tabs(elem_id="np-dock", selected="result") as dock:
        tabs = {}
        for name, title in PARTS:
            with gr.Tab(title, id=name) as tabs[name]:
                if name == "result":
                    shown = result.build(shared)
                elif name == "unit":
                    unit.build(shared, map_)
                elif name == "layers":
                    layers.build(shared)
                elif name == "distribution":
                    distribution.build(shared)
                else:
                    rivals.build(shared, map_)
    # A selected unit is explained at once.
    shared.redraw("selected", {dock}, lambda view: {dock: gr.Tabs(selected="unit")})

    def open_part(name: Dock):
        def opened(request: gr.Request) -> Updates | dict[str, str]:
            """Draw the part that is opened."""
            owner = owner_of(request)
            shared.workbench.look_by(owner, dock=name)
            # The first part opens with the page, before the model does.
            if not shared.workbench.has_session(owner):
                return gr.skip()
            with toasts():
                return shared.updates(shared.view(request), "docked") or gr.skip()

        return opened

    def connect() -> None:
        for name, tab in tabs.items():
            tab.select(open_part(name), None, shared.outputs("docked"), **QUICK)

    shared.later(connect)
    return PlanTab(dock, shown)
