"""The part of step 5 for image models: the same classes and seeds, drawn by every model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import pandas as pd

from numprune.errors import CancelEvent, InputError, Progress
from numprune.evaluation.images.features import METRICS
from numprune.evaluation.images.judge import panel_of
from numprune.evaluation.images.quality import ImageQuality, image_quality
from numprune.evaluation.speed import now
from numprune.llamagen import LlamaGen
from numprune.models import Model
from numprune.ui import html
from numprune.ui.page import LIVE, Updates, owner_of, toasts
from numprune.ui.pictures import Drawn, Exhibition

if TYPE_CHECKING:
    from numprune.ui.page import Page

IMAGES, QUALITY = "Images", "Image quality"
DRAWING = "Press Draw side by side; the dense and the pruned models draw the same classes from the same seeds."
MEASURING = "Press Measure images for the distance to real images and the speed of every model."
MOST_IMAGES = 64
FIRST_CLASSES = 10
"""Classes that are chosen when a model opens, where it has as many."""


@dataclass
class ImagesPart:
    """Components for image models."""

    part: gr.Column
    classes: gr.Dropdown
    count: gr.Slider
    seed: gr.Number
    guidance: gr.Slider
    temperature: gr.Slider
    top_k: gr.Number
    top_p: gr.Slider
    draw: gr.Button
    pictures: gr.HTML
    which: gr.Dropdown
    model: gr.Dropdown
    slider: gr.ImageSlider
    samples: gr.Number
    measure: gr.Button
    quality: gr.HTML

    @property
    def settings(self) -> set[Any]:
        sampling = {self.guidance, self.temperature, self.top_k, self.top_p, self.seed}
        return {self.classes, self.count, self.samples, *sampling}

    @property
    def drawing_outputs(self) -> set[Any]:
        return {self.pictures, self.which, self.model, self.slider}

    @property
    def outputs(self) -> set[Any]:
        return {self.part, self.classes, *self.drawing_outputs, self.quality}

    def clear(self, model: Model) -> Updates:
        """Empty, and shown for image models only."""
        updates: Updates = {
            self.part: gr.Column(visible=not model.adapter.reads_text),
            self.pictures: html.empty(DRAWING),
            self.which: gr.Dropdown([], value=None),
            self.model: gr.Dropdown([], value=None),
            self.slider: None,
            self.quality: html.empty(MEASURING),
            self.classes: gr.Dropdown([], value=[]),
        }
        if not model.adapter.reads_text:
            choices = [(name, index) for index, name in enumerate(model.class_names)]
            chosen = [index for _, index in choices[:FIRST_CLASSES]]
            updates[self.classes] = gr.Dropdown(choices, value=chosen)
        return updates


def build() -> ImagesPart:
    with gr.Column(visible=False, elem_id="np-images") as part:
        with gr.Row():
            classes = gr.Dropdown(
                [],
                multiselect=True,
                label="Classes",
                info="What the images show; type to search.",
                scale=3,
                min_width=320,
            )
            draw = gr.Button("Draw side by side", variant="primary", scale=1, min_width=160)
        with gr.Accordion("Sampling", open=False), gr.Row():
            count = gr.Slider(1, 8, 2, step=1, label="Images of each class", info=f"At most {MOST_IMAGES} in all.")
            guidance = gr.Slider(
                0, 10, 4, step=0.25, label="Guidance", info="How much the class counts; 1 is no guidance."
            )
            temperature = gr.Slider(0, 1.5, 1, step=0.05, label="Temperature", info="0 takes the likeliest code.")
            top_k = gr.Number(2000, precision=0, minimum=0, label="Top-k", info="0 keeps every code.")
            top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", info="1 keeps every code.")
            seed = gr.Number(0, precision=0, label="First seed", info="The next image has the next seed.")
        pictures = gr.HTML(html.empty(DRAWING), elem_id="np-pictures")
        # Always there: what is filled in the moment it appears stays empty now and then.
        with gr.Row():
            with gr.Column(min_width=220):
                which = gr.Dropdown(
                    [], label="Image to look at closely", info="Drag the line across it.", elem_id="np-which"
                )
                model = gr.Dropdown([], label="Beside the dense model's", info="Left dense, right pruned.")
            slider = gr.ImageSlider(
                label="Dense | pruned", interactive=False, height=416, elem_id="np-slider", show_label=True
            )
        with gr.Row():
            samples = gr.Number(
                500,
                precision=0,
                minimum=2,
                label="Images to measure",
                info="Drawn by every model, all classes alike, with the sampling above; more tell finer differences.",
                scale=3,
            )
            measure = gr.Button("Measure images", variant="secondary", scale=1, min_width=160)
        quality = gr.HTML(html.empty(MEASURING), elem_id="np-quality")
    return ImagesPart(
        part=part,
        classes=classes,
        count=count,
        seed=seed,
        guidance=guidance,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        draw=draw,
        pictures=pictures,
        which=which,
        model=model,
        slider=slider,
        samples=samples,
        measure=measure,
        quality=quality,
    )


def settings_of(step: ImagesPart, given: Updates) -> dict[str, Any]:
    """What `LlamaGen.generate` takes."""
    return {
        "cfg_scale": float(given[step.guidance]),
        "temperature": float(given[step.temperature]),
        "top_k": int(given[step.top_k] or 0),
        "top_p": float(given[step.top_p]),
    }


def first_seed(step: ImagesPart, given: Updates) -> int:
    return int(given[step.seed] or 0)


def exhibition(
    models: Mapping[str, LlamaGen],
    classes: list[int],
    count: int,
    seed: int,
    settings: Mapping[str, Any],
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> Iterator[Exhibition]:
    """All images so far, model after model.

    Raises:
        InputError: there is no class or there are too many images, or the models cannot paint.
    """
    wanted = [each for each in classes for _ in range(count)]
    if not wanted:
        raise InputError("No class is chosen; choose at least one.")
    if len(wanted) > MOST_IMAGES:
        raise InputError(
            f"{len(classes)} classes of {count} images are {len(wanted)}; draw at most {MOST_IMAGES} at once."
        )
    seeds = [seed + index for index in range(len(wanted))]
    dense = next(iter(models.values()))
    panel = panel_of(dense)
    drawn: dict[str, Drawn] = {}
    for name, model in models.items():
        # The first run in a process also pays for what is set up once.
        model.generate(wanted[:1], seed=seed, cancel=cancel, **settings)
        started = now(model.device)
        codes = model.generate(wanted, seed=seed, progress=progress, cancel=cancel, **settings)
        images = model.decode(codes)
        seconds = now(model.device) - started
        drawn[name] = Drawn.of(images, seconds, None if panel is None else panel.verdicts(images))
        yield Exhibition(dense.class_names, wanted, seeds, dict(drawn))


def quality_table(measured: Mapping[str, ImageQuality], models: Mapping[str, Model]) -> str:
    """Every model's figures, the dense model first."""
    first = next(iter(measured.values()))
    fastest = first.images_per_second[0]

    def row(name: str, shown: Any) -> tuple[str, ...]:
        return (name, *(shown(each) for each in measured.values()))

    def speed(each: ImageQuality) -> str:
        median, low, high = each.images_per_second
        return f"{median:.1f} ({low:.1f} to {high:.1f}) · {median / fastest:.2f}x"

    rows = [("Parameters", *(f"{models[name].parameters:,}" for name in measured))]
    rows.append(row("Recognised as their class", lambda q: f"{q.recognised:.1%} ± {q.recognised_error:.1%}"))
    rows.append(row("Fréchet distance to real images", lambda q: f"{q.metrics.values['fid']:.3f}"))
    rows.append(row("Spatial Fréchet distance", lambda q: f"{q.metrics.values['sfid']:.3f}"))
    rows.append(row("Class score (as the Inception score)", lambda q: f"{q.metrics.values['is']:.2f}"))
    rows.append(row("Precision", lambda q: f"{q.metrics.values['precision']:.1%}"))
    rows.append(row("Recall", lambda q: f"{q.metrics.values['recall']:.1%}"))
    rows.append(row("Images/s", speed))
    rows.append(row("Seconds an image", lambda q: f"{1 / q.images_per_second[0]:.4f}"))
    small_print = [
        f"{first.n:,} images of every model, all classes alike, judged by {first.metrics.extractor}, a classifier"
        " trained on real images: not Inception, so the values cannot be set beside published ones. ± is one standard"
        " error. Fréchet distances shrink with the number of images; compare at the same one.",
        f"Speed: median (lowest to highest) of {len(first.batch_seconds)} batches of {first.batch}, on {first.device}"
        f" in {first.dtype}; 1.00x is the dense model.",
    ]
    return html.table(["", *measured], rows) + html.notes(small_print)


def drawn(
    page: Page,
    models: Mapping[str, LlamaGen],
    given: Updates,
    owner: str,
    progress: Progress,
    cancel: CancelEvent,
) -> Iterator[Updates]:
    """Every model's images, model after model; at the end the pair to look at closely."""
    step = page.compare.images
    classes = [int(each) for each in given[step.classes] or []]
    shown = None
    for shown in exhibition(
        models, classes, int(given[step.count]), first_seed(step, given), settings_of(step, given), progress, cancel
    ):
        yield {step.pictures: shown.html()}
    page.workbench.exhibit(owner, shown)
    page.workbench.find(owner, IMAGES, shown.table(), shown.html())
    others = list(shown.drawn)[1:]
    yield {
        step.which: gr.Dropdown([(title, index) for index, title in enumerate(shown.titles)], value=0),
        step.model: gr.Dropdown(others, value=others[-1]),
        step.slider: shown.pair(others[-1], 0),
    }


def assessed(
    page: Page,
    models: Mapping[str, LlamaGen],
    given: Updates,
    owner: str,
    progress: Progress,
    cancel: CancelEvent,
) -> Updates:
    """The quality of every model's images, one model after the other."""
    step = page.compare.images
    panel = panel_of(next(iter(models.values())))
    if panel is None:
        raise InputError(
            "This model came without a classifier to judge its images; measure it with Inception features by"
            " numprune eval MODEL --images N --reference FILE.npz."
        )
    measured = {}
    for name, model in models.items():
        measured[name] = image_quality(
            model,
            int(given[step.samples] or 0),
            panel,
            panel.reference,
            METRICS,
            seed=first_seed(step, given),
            progress=progress,
            cancel=cancel,
            **settings_of(step, given),
        )
    rows = []
    for name, each in measured.items():
        values = each.to_dict()
        rows.append({"model": name, "parameters": models[name].parameters, **values.pop("values"), **values})
    table = quality_table(measured, models)
    page.workbench.find(owner, QUALITY, pd.DataFrame(rows), table)
    return {step.quality: table}


def wire(page: Page) -> None:
    """The quick handler; `compare.wire` connects the long ones."""
    step = page.compare.images

    def look(which: int | None, model: str | None, request: gr.Request) -> Updates:
        with toasts():
            shown = page.workbench.exhibition(owner_of(request))
            if which is None or model not in shown.drawn:
                raise InputError("There is no such image any more; press Draw side by side.")
            return {step.slider: shown.pair(model, int(which))}

    for choice in (step.which, step.model):
        choice.input(look, [step.which, step.model], {step.slider}, **LIVE)
