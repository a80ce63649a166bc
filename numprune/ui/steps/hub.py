"""Part of step 6: the exported model on the Hugging Face Hub, with a token that is used once and never kept."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from numprune.errors import InputError
from numprune.evaluation.perplexity import perplexity
from numprune.export import check_export, push_to_hub
from numprune.export.hub import check_repo_id
from numprune.ui.page import ACCELERATOR, Updates, owner_of
from numprune.ui.steps.compare import measured_on
from numprune.ui.workbench import Workbench, reporter

if TYPE_CHECKING:
    from numprune.ui.page import Page

# At the click, when the values are on their way: whatever comes of the upload, and should it be stopped.
CLEAR_TOKEN = """(...inputs) => {
  const box = document.querySelector("#np-token input");
  box.value = "";
  box.dispatchEvent(new Event("input", { bubbles: true }));
  return inputs;
}"""
HELD_OUT = "stories no model was trained on"


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


def build(workbench: Workbench) -> HubPart:
    with gr.Accordion("Push to the Hugging Face Hub", open=False, visible=workbench.policy.push, elem_id="np-hub"):
        with gr.Row():
            repository = gr.Textbox(
                "",
                label="Repository",
                placeholder="owner/name",
                info="Made where there is none; gets a card with the recipe and how to load the model.",
                min_width=220,
            )
            token = gr.Textbox(
                "",
                type="password",
                elem_id="np-token",
                label="Token",
                info="Of an account that may write there. Used for this upload, cleared at the click and kept nowhere.",
                min_width=220,
            )
        with gr.Row():
            private = gr.Checkbox(True, label="Private", info="Of a new repository.", min_width=160)
            measure = gr.Checkbox(
                True,
                label="Perplexity on the card",
                info="Measured now, dense and pruned, on the text of step 5.",
                min_width=220,
            )
            push = gr.Button("Push to the Hub", variant="secondary", min_width=160)
        address = gr.HTML("")
    return HubPart(repository, token, private, measure, push, address)


def wire(page: Page) -> None:
    step = page.export
    part = step.hub

    def upload(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        with page.job(request) as cancel:
            if not page.workbench.policy.push:
                raise InputError("Nothing is pushed to the Hub from here; download the model and push it yourself.")
            session = given[page.session]
            repository, token = given[part.repository].strip(), given[part.token].strip()
            # Without one the upload would be made in the name of whoever runs this program.
            if not token:
                raise InputError(
                    "There is no token; make one that may write at https://huggingface.co/settings/tokens."
                )
            check_repo_id(repository)
            model = step.chosen(page, given, owner_of(request))
            format, options, report = given[step.format], step.settings(given), reporter(bar)
            check_export(model, format, options)
            card: dict[str, Any] = {}
            if given[part.measure] and model.adapter.reads_text:
                text = given[page.compare.own_text]
                measured = {"perplexity_after": model, "perplexity_before": page.workbench.dense(session).model}
                for name, each in measured.items():
                    card[name] = perplexity(each, measured_on(text), progress=report, cancel=cancel)
                card["perplexity_data"] = "a text of its author's" if text.strip() else HELD_OUT
            address = push_to_hub(
                model,
                repository,
                format=format,
                options=options,
                token=token,
                private=bool(given[part.private]),
                progress=report,
                cancel=cancel,
                **card,
            )
            link = f"<a href='{escape(address)}' target='_blank' rel='noopener'>{escape(address)}</a>"
            return {part.address: f"<p>Uploaded to {link}</p>"}

    event = part.push.click(
        upload,
        {page.session, page.compare.own_text, *step.inputs, *part.inputs},
        {part.address},
        api_visibility="private",
        show_progress_on=part.address,
        js=CLEAR_TOKEN,
        **ACCELERATOR,
    )
    page.stoppable.append(event)
