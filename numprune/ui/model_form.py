"""The panel below *Model…*: which model, and the text its scores are measured on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from numprune.calibration.budget import size_note
from numprune.calibration.names import DATASETS, cache_folder
from numprune.calibration.text_files import ACCEPTED, KINDS
from numprune.errors import InputError
from numprune.files import write_bytes
from numprune.models.dtypes import DTYPE_NAMES
from numprune.plan.recipe import CalibrationRecipe
from numprune.scoring.score_file import SUFFIX, read_score_file
from numprune.ui import engine
from numprune.ui.given_numbers import whole
from numprune.ui.header import CLOSE
from numprune.ui.records import Loaded
from numprune.ui.session import LoadRequest
from numprune.ui.shared import QUICK, Shared, Updates, as_text, owner_of
from numprune.ui.workbench import BY_MODEL

UPLOADED, PASTED = "uploaded file", "pasted text"


@dataclass
class ModelForm:
    """Components of the form."""

    model: gr.Dropdown
    device: gr.Dropdown
    dtype: gr.Dropdown
    data: gr.Dropdown
    upload: gr.File
    text: gr.Textbox
    column: gr.Textbox
    samples: gr.Number
    length: gr.Number
    seed: gr.Number
    open: gr.Button
    scores: gr.UploadButton

    @property
    def inputs(self) -> set[Any]:
        source = {self.data, self.upload, self.text, self.column, self.samples, self.length, self.seed}
        return {self.model, self.device, self.dtype, *source}


def build(shared: Shared) -> ModelForm:
    workbench = shared.workbench
    free = workbench.policy.models is None
    with gr.Column(elem_id="np-model", elem_classes="np-panel"):
        with gr.Row():
            model = gr.Dropdown(
                workbench.choices,
                value=workbench.start.model,
                allow_custom_value=free,
                label="Model: an embedded name, a Hugging Face id or a folder" if free else "Model",
                min_width=260,
                scale=3,
            )
            device = gr.Dropdown(["auto", "cuda", "mps", "cpu"], value="auto", label="Device", min_width=90)
            dtype = gr.Dropdown(["auto", *DTYPE_NAMES], value="auto", label="Data type", min_width=110)
        with gr.Row():
            data = gr.Dropdown(
                [
                    ("the model's own samples", "self"),
                    *((name, name) for name in DATASETS),
                    (UPLOADED, UPLOADED),
                    (PASTED, PASTED),
                ],
                value="self",
                allow_custom_value=free,
                label="Calibration text",
                min_width=180,
                scale=2,
            )
            column = gr.Textbox(label="Text column", placeholder="by name", min_width=90)
            samples = gr.Number(0, precision=0, minimum=0, label="Samples, 0 auto", min_width=120)
            length = gr.Number(0, precision=0, minimum=0, label="Length, 0 auto", min_width=115)
            seed = gr.Number(0, precision=0, label="Seed", min_width=70)
        upload = gr.File(
            label="File of text or rows", file_types=[*KINDS, ".gz"], type="filepath", visible=False, height=120
        )
        text = gr.Textbox(label="Calibration text to paste", lines=4, visible=False)
        with gr.Row():
            button = gr.Button("Open and score", variant="primary", size="md", min_width=160)
            scores = gr.UploadButton(
                "Open scores without the model", size="md", file_types=[SUFFIX], type="filepath", min_width=160
            )
    form = ModelForm(model, device, dtype, data, upload, text, column, samples, length, seed, button, scores)
    shared.redraw("opened", {model}, lambda view: {model: view.session.dense.model})
    shared.later(lambda: _wire(shared, form))
    return form


def texts_folder() -> Path:
    """Where texts from the page are kept, so that a recipe made with one can be repeated on this machine."""
    return cache_folder() / "texts"


def keep_text(text: str, suffix: str) -> str:
    """Write a text under the name of its hash; returns the path.

    Raises:
        InputError: it is empty.
    """
    if not text.strip():
        raise InputError("There is no calibration text; paste some, upload a file or choose another source.")
    return keep_bytes(text.encode(), suffix)


def keep_bytes(data: bytes, suffix: str) -> str:
    """Write a file under the name of its hash; returns the path."""
    path = texts_folder() / f"{hashlib.sha256(data).hexdigest()[:16]}{suffix}"
    if not path.exists():
        write_bytes(path, data)
    return str(path)


def source_of(data: str | None, upload: str | None, text: str | None, column: str | None = None) -> str:
    """The calibration source the controls describe.

    Args:
        column: of an upload's rows that holds the text; None for the first that is known by its name.

    Raises:
        InputError: there is none.
    """
    if data == PASTED:
        return keep_text(text or "", ".txt")
    if data == UPLOADED:
        if not upload:
            raise InputError(f"There is no uploaded file; drop one into the box first ({ACCEPTED}).")
        engine.documents(upload, "train", column=column)
        return keep_bytes(Path(upload).read_bytes(), "".join(Path(upload.lower()).suffixes[-2:]))
    if not data:
        raise InputError("There is no calibration text; choose a source.")
    return data


def asked_for(form: ModelForm, given: Updates) -> LoadRequest:
    """What the form describes.

    Raises:
        InputError: something in it is missing or no number.
    """
    boxes = {"samples": (form.samples, "Samples"), "sequence_length": (form.length, "Length")}
    # 0, and so an empty box, leaves a size to the model.
    sizes = {name: size for name, (box, what) in boxes.items() if (size := whole(given[box], what, empty=0))}
    column = (given[form.column] or "").strip() or None
    source = source_of(given[form.data], given[form.upload], given[form.text], column)
    calibration = CalibrationRecipe(source, seed=whole(given[form.seed], "Seed"), text_column=column, **sizes)
    model = (given[form.model] or "").strip()
    return LoadRequest(model, given[form.device], given[form.dtype], calibration, BY_MODEL - set(sizes))


def say_size(wanted: LoadRequest, loaded: Loaded) -> None:
    """A word on the page where a model is calibrated on less than the paper's text because nobody said how much."""
    note = size_note(loaded.request.calibration) if wanted.by_model == BY_MODEL else None
    if note is not None:
        gr.Info(note, title="How much text")


def say_refusal(why: str | None) -> None:
    """A word on the page where the model could not be scored for the default method."""
    if why is not None:
        gr.Warning(f"The plan goes by the paper's method: {as_text(why)}", title="Not scored for the default method")


def _wire(shared: Shared, form: ModelForm) -> None:
    def open_model(given: Updates, request: gr.Request) -> Updates:
        owner, workbench = owner_of(request), shared.workbench
        with shared.job(request) as job:
            wanted = asked_for(form, given)
            loaded = workbench.load(
                wanted, owner, own_texts=str(texts_folder()), progress=job.progress, cancel=job.cancel
            )
            updates = entered(loaded, request)
            say_size(wanted, loaded)
            return updates

    def open_scores(file: str, request: gr.Request) -> Updates:
        """Show the scores of a model whose weights are elsewhere."""
        with shared.job(request):
            held = read_score_file(file, name=Path(file).name)
            return entered(shared.workbench.put_scores(held, owner_of(request)), request)

    def entered(loaded: Loaded, request: gr.Request) -> Updates:
        """Leave what was open for what is opened."""
        owner, workbench = owner_of(request), shared.workbench
        workbench.enter(owner, workbench.fresh(loaded, workbench.ratio(owner)))
        workbench.release(owner, keep=loaded.request)
        view = shared.view(request)
        say_refusal(workbench.refusal(view.session))
        return shared.updates(view, "opened", "planned")

    def show_source(data: str) -> Updates:
        return {
            form.upload: gr.File(visible=data == UPLOADED),
            form.text: gr.Textbox(visible=data == PASTED),
        }

    form.data.change(show_source, form.data, {form.upload, form.text}, **QUICK)
    outputs = shared.outputs("opened", "planned")
    for event in (
        shared.long(form.open.click, open_model, form.inputs, outputs),
        shared.long(form.scores.upload, open_scores, form.scores, outputs),
    ):
        event.success(None, None, None, js=CLOSE, api_visibility="private", queue=False)
