"""Step 1: choose a model and what to calibrate it on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from numprune.calibration import DATASETS
from numprune.calibration.data import documents
from numprune.calibration.self_samples import cache_folder
from numprune.calibration.text_files import ACCEPTED, KINDS
from numprune.errors import InputError
from numprune.files import write_bytes
from numprune.models.placement import DTYPES
from numprune.plan.recipe import CalibrationRecipe
from numprune.scoring import SCORERS
from numprune.ui import html
from numprune.ui.page import ACCELERATOR, LIVE, Updates, owner_of
from numprune.ui.session import LoadRequest
from numprune.ui.workbench import Loaded, Workbench, reporter

if TYPE_CHECKING:
    from numprune.ui.page import Page


@dataclass
class LoadStep:
    """Components of step 1."""

    model: gr.Dropdown
    device: gr.Dropdown
    dtype: gr.Dropdown
    data: gr.Dropdown
    upload: gr.File
    text: gr.Textbox
    samples: gr.Number
    length: gr.Number
    seed: gr.Number
    scorer: gr.Dropdown
    button: gr.Button
    facts: gr.HTML

    @property
    def inputs(self) -> set[Any]:
        source = {self.data, self.upload, self.text, self.samples, self.length, self.seed}
        return {self.model, self.device, self.dtype, self.scorer, *source}

    @property
    def outputs(self) -> set[Any]:
        return {self.facts}

    def show(self, loaded: Loaded) -> Updates:
        return {self.facts: facts(loaded)}


def facts(loaded: Loaded) -> str:
    """What is known of the open model."""
    model, stats = loaded.model, loaded.stats
    heads = next((block for block in model.blocks if block.key.kind == "attention"), None)
    channels = next((block for block in model.blocks if block.key.kind == "mlp"), None)
    config = model.config.get_text_config()
    query_heads, unit = config.num_attention_heads, unit_name(loaded)
    shared = "" if unit == "head" else f" of {query_heads // (heads.units if heads else 1)} query heads"
    items = [
        (model.name, model.architecture),
        (html.count(model.parameters), f"parameters, {html.count(model.prunable_parameters)} prunable"),
        (str(model.layers), "layers"),
        (str(heads.units if heads else 0), f"{unit}s{shared} a layer"),
        (f"{channels.units if channels else 0:,}", "MLP channels a layer"),
        (html.memory(model.bytes), f"weights, {str(model.dtype).removeprefix('torch.')} on {model.device}"),
        (
            f"{stats.samples} x {stats.sequence_length}",
            f"calibration tokens ({'its own samples' if stats.data == 'self' else Path(stats.data).name}),"
            f" {stats.seconds:.1f} s",
        ),
    ]
    return html.cards(items) + html.notes([*model.notes, *stats.notes])


def unit_name(loaded: Loaded) -> str:
    """What one attention unit of the model is called."""
    config = loaded.model.config.get_text_config()
    heads = config.num_attention_heads
    return "head" if getattr(config, "num_key_value_heads", None) in (None, heads) else "KV group"


UPLOADED, PASTED = "uploaded file", "pasted text"


def build(workbench: Workbench) -> LoadStep:
    with gr.Column(elem_classes="np-step"):
        gr.Markdown("## 1 · Load\nChoose a model and the text its scores are measured on.")
        facts = gr.HTML(html.empty("The model is being loaded and scored."))
        with gr.Accordion("Another model or other calibration text", open=False):
            with gr.Row():
                model = gr.Dropdown(
                    workbench.choices,
                    value=workbench.start.model,
                    allow_custom_value=workbench.policy.models is None,
                    label="Model",
                    info="An embedded name, a Hugging Face id (owner/name) or a folder on this machine."
                    if workbench.policy.models is None
                    else "The models this server offers.",
                    scale=2,
                )
                device = gr.Dropdown(
                    ["auto", "cuda", "mps", "cpu"], value="auto", label="Device", info="auto: CUDA, then MPS, then CPU."
                )
                dtype = gr.Dropdown(
                    ["auto", *DTYPES], value="auto", label="Data type", info="auto: the checkpoint's; float32 on a CPU."
                )
                scorer = gr.Dropdown(
                    list(SCORERS), value="newton", label="Scorer", info="newton is the closed form of the paper's."
                )
            with gr.Row():
                data = gr.Dropdown(
                    [
                        ("the model's own samples", "self"),
                        *((name, name) for name in DATASETS),
                        (UPLOADED, UPLOADED),
                        (PASTED, PASTED),
                    ],
                    value="self",
                    allow_custom_value=workbench.policy.models is None,
                    label="Calibration text",
                    info="Its own text, a dataset (downloaded), yours, a file's path, or several: c4,wikitext2,self.",
                    scale=2,
                )
                samples = gr.Number(128, precision=0, minimum=1, label="Samples", info="Sequences to read.")
                length = gr.Number(2048, precision=0, minimum=2, label="Length", info="Tokens each, at most.")
                seed = gr.Number(0, precision=0, label="Seed", info="Which windows are drawn.")
            upload = gr.File(
                label="File of text or rows", file_types=[*KINDS, ".gz"], type="filepath", visible=False, height=120
            )
            text = gr.Textbox(
                label="Calibration text to paste",
                info="Stays on this machine; <|endoftext|> separates documents.",
                lines=5,
                visible=False,
            )
            button = gr.Button("Load and score", variant="secondary")
    return LoadStep(model, device, dtype, data, upload, text, samples, length, seed, scorer, button, facts)


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


def source_of(data: str | None, upload: str | None, text: str | None) -> str:
    """The calibration source the controls describe.

    Raises:
        InputError: there is none.
    """
    if data == PASTED:
        return keep_text(text or "", ".txt")
    if data == UPLOADED:
        if not upload:
            raise InputError(f"There is no uploaded file; drop one into the box first ({ACCEPTED}).")
        documents(upload, "train")
        return keep_bytes(Path(upload).read_bytes(), "".join(Path(upload.lower()).suffixes[-2:]))
    if not data:
        raise InputError("There is no calibration text; choose a source.")
    return data


def whole(value: Any, what: str) -> int:
    """A whole number from the page.

    Raises:
        InputError: it is none.
    """
    if value is None or isinstance(value, bool) or int(value) != value:
        raise InputError(f"{what} is {value!r}; give a whole number.")
    return int(value)


def wire(page: Page) -> None:
    step = page.load

    def load_and_score(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008  (gradio finds it by its default)
    ) -> Updates:
        owner = owner_of(request)
        with page.job(request) as cancel:
            calibration = CalibrationRecipe(
                source_of(given[step.data], given[step.upload], given[step.text]),
                whole(given[step.samples], "Samples"),
                whole(given[step.length], "Length"),
                whole(given[step.seed], "Seed"),
            )
            name = (given[step.model] or "").strip()
            wanted = LoadRequest(name, given[step.device], given[step.dtype], calibration, given[step.scorer])
            loaded = page.workbench.load(
                wanted, owner, own_texts=str(texts_folder()), progress=reporter(bar), cancel=cancel
            )
            updates = page.opened(page.workbench.open(loaded, given[page.session]), given)
            page.workbench.release(owner, keep=wanted)
            return updates

    def show_source(data: str) -> Updates:
        return {
            step.upload: gr.File(visible=data == UPLOADED),
            step.text: gr.Textbox(visible=data == PASTED),
        }

    step.data.change(show_source, step.data, {step.upload, step.text}, **LIVE)
    event = step.button.click(
        load_and_score,
        {*step.inputs, *page.look},
        page.all_outputs,
        api_visibility="private",
        show_progress_on=step.facts,
        **ACCELERATOR,
    )
    page.stoppable.append(event)
    page.openings.append(event)
