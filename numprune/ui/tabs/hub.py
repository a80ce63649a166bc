"""Part of Export: the exported model on the Hugging Face Hub, with a token that is used once and never kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from numprune.errors import InputError
from numprune.export.formats import check_export
from numprune.ui import engine
from numprune.ui.comparison import measured_on
from numprune.ui.shared import Shared, Updates, View

if TYPE_CHECKING:
    pass


# At the click, when the values are on their way: whatever comes of the upload, and should it be stopped.
CLEAR_TOKEN = """(...inputs) => {
  document.dispatchEvent(new CustomEvent("np-started"));
  const box = document.querySelector("#np-token input");
  box.value = "";
  box.dispatchEvent(new Event("input", { bubbles: true }));
  return inputs;
}"""
HELD_OUT = "stories no model was trained on"
Chosen = Callable[[View, Updates], tuple[Any, str, dict[str, str]]]
"""From the tab and the values of its controls to the model, the format and its options."""


@dataclass
class HubPart:
    """Components of the upload."""

    repository: gr.Textbox
    token: gr.Textbox
    private: gr.Checkbox
    measure: gr.Checkbox
    push: gr.Button
    address: gr.HTML

    @property
    def inputs(self) -> set[Any]:
        return {self.repository, self.token, self.private, self.measure}


def build(shared: Shared, chosen: Chosen, inputs: set[Any]) -> HubPart:
    """The part; `chosen` reads what is exported from the values of `inputs`."""
    push = shared.workbench.policy.push
    with gr.Accordion("Push to the Hugging Face Hub", open=False, visible=push, elem_id="np-hub"):
        with gr.Row():
            repository = gr.Textbox("", label="Repository", placeholder="owner/name", min_width=200)
            token = gr.Textbox(
                "",
                type="password",
                elem_id="np-token",
                label="Token; cleared at the click, kept nowhere",
                min_width=200,
            )
        with gr.Row():
            private = gr.Checkbox(True, label="Private", min_width=120)
            measure = gr.Checkbox(True, label="Perplexity on the card, measured now", min_width=200)
            button = gr.Button("Push to the Hub", size="sm", min_width=140)
        address = gr.HTML("")
    part = HubPart(repository, token, private, measure, button, address)
    shared.redraw("opened", {address}, lambda view: {address: ""})
    shared.later(lambda: _wire(shared, part, chosen, inputs))
    return part


def _wire(shared: Shared, part: HubPart, chosen: Chosen, inputs: set[Any]) -> None:
    text = shared.making.text

    def upload(given: Updates, request: gr.Request) -> Updates:
        with shared.job(request) as job:
            if not shared.workbench.policy.push:
                raise InputError("Nothing is pushed to the Hub from here; download the model and push it yourself.")
            view = shared.view(request)
            repository, token = given[part.repository].strip(), given[part.token].strip()
            # Without one the upload would be made in the name of whoever runs this program.
            if not token:
                raise InputError(
                    "There is no token; make one that may write at https://huggingface.co/settings/tokens."
                )
            engine.check_repo_id(repository)
            model, format, options = chosen(view, given)
            check_export(model, format, options)
            steps = {"progress": job.progress, "cancel": job.cancel}
            card: dict[str, Any] = {}
            if given[part.measure] and model.adapter.reads_text:
                measured = {"perplexity_after": model, "perplexity_before": view.loaded.model}
                for name, each in measured.items():
                    card[name] = engine.perplexity(each, measured_on(given[text]), **steps)
                card["perplexity_data"] = "a text of its author's" if given[text].strip() else HELD_OUT
            address = engine.push_to_hub(
                model,
                repository,
                format=format,
                options=options,
                token=token,
                private=bool(given[part.private]),
                **steps,
                **card,
            )
            link = f"<a href='{escape(address)}' target='_blank' rel='noopener'>{escape(address)}</a>"
            return {part.address: f"<p>Uploaded to {link}</p>"}

    shared.long(
        part.push.click, upload, {text, *inputs, *part.inputs}, {part.address}, show_on=part.address, js=CLEAR_TOKEN
    )
