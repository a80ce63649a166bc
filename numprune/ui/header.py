"""The line at the top: what is open, what runs, and the two panels that open below it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from numprune.ui.facts import chip
from numprune.ui.jobs import Jobs
from numprune.ui.shared import QUICK, Shared, Updates, View, owner_of
from numprune.ui.workbench import Workbench

JS = (Path(__file__).parent / "activity.js").read_text(encoding="utf8")
ACTIVITY = (
    "<div class='np-activity'><span class='np-running' role='status'></span>"
    "<button type='button' id='np-stop' disabled>Stop</button></div>"
)
TOGGLE = """() => {
  for (const [button, panel] of [["np-open-model", "np-model"], ["np-open-share", "np-share"]]) {
    const one = document.getElementById(panel), open = panel === "%s" && !one.classList.contains("np-open");
    one.classList.toggle("np-open", open);
    document.getElementById(button).setAttribute("aria-expanded", open);
  }
}"""
CLOSE = """() => {
  for (const [button, panel] of [["np-open-model", "np-model"], ["np-open-share", "np-share"]]) {
    document.getElementById(panel).classList.remove("np-open");
    document.getElementById(button).setAttribute("aria-expanded", false);
  }
}"""


@dataclass
class Header:
    """Components of the header."""

    chip: gr.HTML
    activity: gr.HTML
    model: gr.Button
    share: gr.Button
    notice: gr.HTML


def build(workbench: Workbench, jobs: Jobs) -> Header:
    """The header; `activity` asks the server what runs by the tab's token."""

    def running(token: Any) -> dict[str, Any] | None:
        """What runs longest in the tab of this token."""
        owner = workbench.owner_of_token(token)
        found = [] if owner is None else jobs.running(owner)
        return found[0].to_dict() if found else None

    with gr.Row(elem_id="np-header"):
        gr.HTML("<h1>numprune</h1>", elem_id="np-title")
        chip = gr.HTML("<p class='np-chip'>opening the model</p>", elem_id="np-chip", js_on_load=None)
        model = gr.Button("Model…", size="sm", elem_id="np-open-model", min_width=70, scale=0)
        share = gr.Button("Share", size="sm", elem_id="np-open-share", min_width=60, scale=0)
        activity = gr.HTML(
            "", html_template=ACTIVITY, js_on_load=JS, server_functions=[running], token=None, elem_id="np-activity"
        )
    notice = gr.HTML("", visible=False, elem_id="np-elsewhere", js_on_load=None, padding=False)
    return Header(chip, activity, model, share, notice)


def elsewhere(view: View) -> gr.HTML:
    """What is off where only the scores of a model are open."""
    why = view.loaded.weights.elsewhere
    return gr.HTML("" if why is None else f"<p role='note'>{escape(why)}</p>", visible=why is not None)


def wire(shared: Shared, header: Header, blocks: gr.Blocks) -> None:
    shared.redraw("opened", {header.notice}, lambda view: {header.notice: elsewhere(view)})
    shared.redraw(
        "opened", {header.chip}, lambda view: {header.chip: chip(view.loaded, view.session.recipe.calibration)}
    )
    for button, panel in ((header.model, "np-model"), (header.share, "np-share")):
        button.click(None, None, None, js=TOGGLE % panel, api_visibility="private", queue=False)

    def name_tab(request: gr.Request) -> Updates:
        """Before anything else: by which name the page's scripts may ask about their tab."""
        return {header.activity: gr.HTML(token=shared.workbench.token(owner_of(request)))}

    def stop(request: gr.Request) -> None:
        shared.jobs.stop(owner_of(request))
        gr.Info("Whatever ran or waited in this tab ends; the page stays as it was before.", title="Stopped")

    def connect() -> None:
        blocks.load(name_tab, None, {header.activity}, **QUICK)
        # The stop event ends what runs; `cancels` also takes what waits out of the queue.
        header.activity.stop(
            stop,
            None,
            None,
            cancels=shared.stoppable,
            api_visibility="private",
            show_progress="hidden",
            concurrency_limit=None,
        )

    shared.later(connect, last=True)
