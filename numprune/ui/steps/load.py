"""Step 1: choose a model and what to calibrate it on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from numprune.calibration import DATASETS
from numprune.models import DEFAULT_MODEL, embedded_models
from numprune.models.loading import DTYPES
from numprune.recipe import CalibrationRecipe
from numprune.ui import html
from numprune.ui.page import ACCELERATOR, Updates, owner_of
from numprune.ui.workbench import Loaded, LoadRequest, Session, reporter

if TYPE_CHECKING:
    from numprune.ui.page import Page


@dataclass
class LoadStep:
    """Components of step 1."""

    model: gr.Dropdown
    device: gr.Dropdown
    dtype: gr.Dropdown
    data: gr.Dropdown
    samples: gr.Number
    length: gr.Number
    seed: gr.Number
    button: gr.Button
    facts: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        return [self.model, self.device, self.dtype, self.data, self.samples, self.length, self.seed]

    @property
    def outputs(self) -> set[Any]:
        return {self.facts}

    def show(self, loaded: Loaded) -> Updates:
        model, stats = loaded.model, loaded.stats
        blocks = model.blocks
        heads = next((b for b in blocks if b.key.kind == "attention"), None)
        channels = next((b for b in blocks if b.key.kind == "mlp"), None)
        unit = unit_name(loaded).lower()
        items = [
            (model.name, model.architecture),
            (html.count(model.parameters), f"parameters, {html.count(model.prunable_parameters)} prunable"),
            (str(model.layers), "layers"),
            (str(heads.units if heads else 0), f"{unit}s a layer"),
            (str(channels.units if channels else 0), "MLP channels a layer"),
            (html.memory(model.bytes), f"weights, {str(model.dtype).removeprefix('torch.')} on {model.device}"),
            (
                f"{stats.samples} x {stats.sequence_length}",
                f"calibration tokens ({'its own samples' if stats.data == 'self' else stats.data}),"
                f" {stats.seconds:.1f} s",
            ),
        ]
        return {self.facts: html.cards(items) + html.notes(stats.notes)}


def unit_name(loaded: Loaded) -> str:
    """What one attention unit of the model is called."""
    config = loaded.model.config
    heads = config.num_attention_heads
    return "Head" if getattr(config, "num_key_value_heads", None) in (None, heads) else "KV group"


def build() -> LoadStep:
    with gr.Column(elem_classes="np-step"):
        gr.Markdown("## 1 · Load\nChoose a model and the text its scores are measured on.")
        facts = gr.HTML(html.empty("The model is being loaded and scored."))
        with gr.Accordion("Another model or other calibration text", open=False):
            with gr.Row():
                model = gr.Dropdown(
                    embedded_models(),
                    value=DEFAULT_MODEL,
                    allow_custom_value=True,
                    label="Model",
                    info="An embedded name, a Hugging Face id (owner/name) or a folder on this machine.",
                    scale=2,
                )
                device = gr.Dropdown(
                    ["auto", "cuda", "mps", "cpu"], value="auto", label="Device", info="auto: CUDA, then MPS, then CPU."
                )
                dtype = gr.Dropdown(
                    ["auto", *DTYPES], value="auto", label="Data type", info="auto: the checkpoint's; float32 on a CPU."
                )
            with gr.Row():
                data = gr.Dropdown(
                    [("the model's own samples", "self"), *((name, name) for name in DATASETS)],
                    value="self",
                    allow_custom_value=True,
                    label="Calibration text",
                    info="A dataset (downloaded), a text or jsonl file, or text the model writes itself.",
                    scale=2,
                )
                samples = gr.Number(128, precision=0, minimum=1, label="Samples", info="Sequences to read.")
                length = gr.Number(2048, precision=0, minimum=2, label="Length", info="Tokens each, at most.")
                seed = gr.Number(0, precision=0, label="Seed", info="Which windows are drawn.")
            button = gr.Button("Load and score", variant="secondary")
    return LoadStep(model, device, dtype, data, samples, length, seed, button, facts)


def wire(page: Page) -> None:
    step = page.load

    def load_and_score(
        model: str,
        device: str,
        dtype: str,
        data: str,
        samples: int,
        length: int,
        seed: int,
        session: Session,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008  (gradio finds it by its default)
    ) -> Updates:
        calibration = CalibrationRecipe(data, int(samples), int(length), int(seed))
        wanted = LoadRequest((model or "").strip(), device, dtype, calibration)
        owner = owner_of(request)
        with page.job(request) as cancel:
            loaded = page.workbench.load(wanted, owner, progress=reporter(bar), cancel=cancel)
            updates = page.opened(page.workbench.open(loaded, session))
            page.workbench.release(owner, keep=wanted)
            return updates

    step.button.click(
        load_and_score,
        [*step.inputs, page.session],
        page.all_outputs,
        api_visibility="private",
        show_progress_on=step.facts,
        **ACCELERATOR,
    )
