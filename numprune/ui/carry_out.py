"""*Prune and compare*: carry the plan out, let both models write or draw, and measure both."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from numprune.ui.making import make, measure
from numprune.ui.rail import Rail
from numprune.ui.shared import Shared, Updates, owner_of
from numprune.ui.side import models_of, side_by_side
from numprune.ui.tabs.plan import PlanTab

SHOW_RESULT = """(...inputs) => {
  document.dispatchEvent(new CustomEvent("np-started"));
  if (innerWidth <= 768) document.getElementById("np-dock")?.scrollIntoView({ behavior: "smooth" });
  return inputs;
}"""


def wire(shared: Shared, rail: Rail, plan: PlanTab) -> None:
    result, dock = plan.result, plan.dock
    workbench, making = shared.workbench, shared.making

    def prune_and_compare(given: Updates, request: gr.Request) -> Iterator[Updates]:
        owner = owner_of(request)
        with shared.job(request) as job:
            workbench.look_by(owner, dock="result")
            session = workbench.session(owner)
            name = workbench.prune(
                session, owner, name=given[rail.name] or "", progress=job.progress, cancel=job.cancel
            )
            view = shared.view(request)
            elsewhere = workbench.look(owner).tab != "compare"
            goes = {shared.tabs: gr.Tabs(selected="plan")} if elsewhere else {}
            yield {**shared.updates(view, "kept"), dock: gr.Tabs(selected="result"), rail.name: "", **goes}
            models = models_of(view, [name])
            for _ in make(workbench, owner, models, making, given, job):
                yield {result.columns: side_by_side(view, [name], figures=False)}
            yield shared.updates(view, "compared")
            measure(workbench, owner, models, making, given, job)
            yield shared.updates(view, "compared", "measured")

    def connect() -> None:
        outputs = shared.outputs("kept", "compared", "measured") | {dock, rail.name, shared.tabs}
        shared.long(rail.prune.click, prune_and_compare, {rail.name, *making.inputs}, outputs, js=SHOW_RESULT)

    shared.later(connect)
