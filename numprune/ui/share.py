"""The panel below *Share*: the recipe as a file, a link and a command, and the report of the session."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from numprune.errors import InputError
from numprune.plan.recipe import Recipe
from numprune.ui.channel import worked
from numprune.ui.command_line import command_line
from numprune.ui.session_report import session_report
from numprune.ui.shared import QUICK, Shared, Updates, View, owner_of, toasts

MOST_LINK = 100_000
"""Characters of a recipe in a link, and bytes it may unpack to."""
LINK = """(link) => {
  const address = new URL(location.href);
  address.search = "";
  for (const [name, value] of new URLSearchParams(link)) address.searchParams.set(name, value);
  const open = document.querySelector("#np-views [role=tab][aria-selected=true]");
  if (open) address.searchParams.set("view", open.textContent.trim().toLowerCase());
  return address.href;
}"""
SAVE_RECIPE = """(text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "recipe.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""


@dataclass
class SharePanel:
    """Components of the panel."""

    link: gr.Textbox
    repeat: gr.Textbox
    recipe: gr.Textbox
    save: gr.Button
    open: gr.UploadButton
    report: gr.Button


def build() -> SharePanel:
    with gr.Column(elem_id="np-share", elem_classes="np-panel"):
        link = gr.Textbox(label="Link to this plan", interactive=False, buttons=["copy"], elem_id="np-link")
        repeat = gr.Textbox(
            label="The same from the command line",
            interactive=False,
            buttons=["copy"],
            lines=2,
            elem_classes="np-mono",
            elem_id="np-command",
        )
        with gr.Row():
            save = gr.Button("Save recipe", size="sm")
            opener = gr.UploadButton("Open recipe", size="sm", file_types=[".json"], type="filepath")
            report = gr.Button("Download the report", size="sm", elem_id="np-report")
        recipe = gr.Textbox(
            label="Recipe", interactive=False, buttons=["copy"], lines=4, max_lines=9, elem_classes="np-mono"
        )
    return SharePanel(link, repeat, recipe, save, opener, report)


def wire(shared: Shared, panel: SharePanel, button: gr.Button) -> None:
    def show(request: gr.Request) -> Updates:
        with toasts():
            recipe = shared.view(request).session.recipe
            return {
                panel.link: f"recipe={packed(recipe)}",
                panel.repeat: command_line(recipe),
                panel.recipe: recipe.to_json(),
            }

    def open_recipe(file: str, request: gr.Request) -> Updates:
        """Take a recipe over; the scores it goes by are made first where they are missing."""
        with shared.job(request) as job:
            recipe = Recipe.read(Path(file))
            owner = owner_of(request)
            adopted = shared.view(request).loaded.weights.adopt(recipe)
            message = json.dumps({"kind": "recipe", "recipe": adopted.to_dict()})
            worked(shared, owner, message, job.progress, job.cancel)
            return shared.updates(shared.view(request), "planned")

    def make_report(request: gr.Request) -> Updates:
        with shared.job(request):
            view = shared.view(request)
            return shared.offer(view.owner, f"numprune-{view.session.recipe.model}.html", report_of(view))

    shown = {panel.link, panel.repeat, panel.recipe}
    event = button.click(show, None, shown, **QUICK)
    event.success(None, panel.link, panel.link, js=LINK, api_visibility="private", queue=False)
    event = shared.long(panel.open.upload, open_recipe, panel.open, shared.outputs("planned"))
    event = event.success(show, None, shown, **QUICK)
    event.success(None, panel.link, panel.link, js=LINK, api_visibility="private", queue=False)
    panel.save.click(None, panel.recipe, None, js=SAVE_RECIPE, api_visibility="private", queue=False)
    shared.save_with(shared.long(panel.report.click, make_report, None, {shared.download}))


def report_of(view: View) -> str:
    """The report of the tab."""
    return session_report(view.loaded, view.plan, view.variants, view.findings, view.workbench.rival(view.session))


def packed(recipe: Recipe) -> str:
    """A recipe as a part of an address."""
    text = json.dumps(recipe.to_dict(), separators=(",", ":"))
    return base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")


def unpacked(text: str) -> Recipe:
    """The recipe of an address.

    Raises:
        InputError: there is none in it.
    """
    try:
        if len(text) > MOST_LINK:
            raise ValueError
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        reader = zlib.decompressobj()
        plain = reader.decompress(raw, MOST_LINK)
        if reader.unconsumed_tail:
            raise ValueError
        given: Any = json.loads(plain)
    except (ValueError, binascii.Error, zlib.error, RecursionError) as error:
        raise InputError("The link holds no recipe; copy the whole of it.") from error
    return Recipe.from_dict(given)
