"""What every model is asked to do, the same for all: prompts or classes, sampling, and how much is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from numprune.errors import InputError
from numprune.ui import engine
from numprune.ui.comparison import (
    DENSE,
    MOST_PROMPTS,
    columns,
    measure_models,
    measured_table,
    prompts_of,
    write_all,
    written_table,
)
from numprune.ui.given_numbers import number, whole
from numprune.ui.image_columns import MOST_IMAGES, exhibition, quality_frame, quality_table
from numprune.ui.jobs import Job
from numprune.ui.workbench import Workbench

if TYPE_CHECKING:
    from numprune.generation import Sampling
    from numprune.models import Model


PROMPT = "Once upon a time, a little rabbit found a red box in the garden."
TEXTS, MEASURED, IMAGES, QUALITY = "Texts", "Measured", "Images", "Image quality"
FIRST_CLASSES = 10
"""Classes that are chosen when a model opens, where it has as many."""


@dataclass
class Making:
    """The controls, made before they have a place on the page."""

    prompts: gr.Textbox
    tokens: gr.Slider
    temperature: gr.Slider
    top_k: gr.Number
    top_p: gr.Slider
    seed: gr.Number
    text: gr.Textbox
    classes: gr.Dropdown
    count: gr.Slider
    guidance: gr.Slider
    image_temperature: gr.Slider
    image_top_k: gr.Number
    image_top_p: gr.Slider
    image_seed: gr.Number
    samples: gr.Number

    @property
    def inputs(self) -> set[Any]:
        return set(vars(self).values())

    @property
    def of_texts(self) -> list[Any]:
        """How text is sampled."""
        return [self.tokens, self.temperature, self.top_k, self.top_p, self.seed]

    @property
    def of_images(self) -> list[Any]:
        """How images are sampled."""
        return [
            self.count,
            self.guidance,
            self.image_temperature,
            self.image_top_k,
            self.image_top_p,
            self.image_seed,
            self.samples,
        ]


def build() -> Making:
    """Controls without a place; a tab renders them."""
    away = {"render": False}
    return Making(
        prompts=gr.Textbox(PROMPT, label=f"Prompts, one a line, at most {MOST_PROMPTS}", lines=2, **away),
        tokens=gr.Slider(16, 512, 160, step=16, label="New tokens", **away),
        temperature=gr.Slider(0, 1.5, 0.7, step=0.05, label="Temperature", **away),
        top_k=gr.Number(0, precision=0, minimum=0, label="Top-k, 0 for all", **away),
        top_p=gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p", **away),
        seed=gr.Number(1, precision=0, label="Seed", **away),
        text=gr.Textbox("", label="Text to measure on; empty: stories no model was trained on", lines=2, **away),
        classes=gr.Dropdown([], multiselect=True, label="Classes", **away),
        count=gr.Slider(1, 8, 2, step=1, label=f"Images of each class, at most {MOST_IMAGES} in all", **away),
        guidance=gr.Slider(0, 10, 4, step=0.25, label="Guidance", **away),
        image_temperature=gr.Slider(0, 1.5, 1, step=0.05, label="Temperature", **away),
        image_top_k=gr.Number(2000, precision=0, minimum=0, label="Top-k, 0 for all", **away),
        image_top_p=gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", **away),
        image_seed=gr.Number(0, precision=0, label="First seed", **away),
        samples=gr.Number(500, precision=0, minimum=2, label="Images to measure", **away),
    )


def sampling_of(making: Making, given: Mapping[Any, Any]) -> Sampling:
    return engine.Sampling(
        max_new_tokens=whole(given[making.tokens], "Tokens"),
        temperature=number(given[making.temperature], "Temperature"),
        top_k=whole(given[making.top_k], "Top-k", empty=0),
        top_p=number(given[making.top_p], "Top-p"),
        seed=whole(given[making.seed], "Seed", empty=0),
    )


def drawing_of(making: Making, given: Mapping[Any, Any]) -> dict[str, Any]:
    """What `LlamaGen.generate` takes."""
    return {
        "cfg_scale": number(given[making.guidance], "Guidance"),
        "temperature": number(given[making.image_temperature], "Temperature"),
        "top_k": whole(given[making.image_top_k], "Top-k", empty=0),
        "top_p": number(given[making.image_top_p], "Top-p"),
    }


def make(
    workbench: Workbench, owner: str, models: Mapping[str, Model], making: Making, given: Mapping[Any, Any], job: Job
) -> Iterator[None]:
    """Let every model write or draw; what there is so far is kept for the tab before each yield."""
    if models[DENSE].adapter.reads_text:
        prompts, sampling = prompts_of(given[making.prompts]), sampling_of(making, given)
        for tokens, written in enumerate(write_all(models, prompts, sampling, job.cancel), 1):
            job.progress(tokens, sampling.max_new_tokens, "writing")
            workbench.keep_written(owner, written)
            yield
        found = workbench.written(owner)
        shown = columns(list(found.texts), found, {}, predicted={}, figures=False)
        workbench.find(owner, TEXTS, written_table(found), shown)
        return
    classes, count = (
        [whole(each, "A class") for each in given[making.classes] or []],
        whole(given[making.count], "Images of each class"),
    )
    seed = whole(given[making.image_seed], "First seed", empty=0)
    for shown in exhibition(models, classes, count, seed, drawing_of(making, given), job.progress, job.cancel):
        workbench.exhibit(owner, shown)
        workbench.find(owner, IMAGES, shown.table(), shown.html())
        yield


def measure(
    workbench: Workbench, owner: str, models: Mapping[str, Model], making: Making, given: Mapping[Any, Any], job: Job
) -> None:
    """Perplexity, size, speed and memory of every model, or the quality of its images, one model after the other."""
    steps = (job.progress, job.cancel)
    if models[DENSE].adapter.reads_text:
        text, before = given[making.text], workbench.measured(owner)
        known = {
            name: each.perplexity
            for name, each in before.items()
            if each.text == text and name in models and each.model is models[name]
        }
        workbench.keep_measured(owner, *measure_models(models, text, *steps, known))
        found = workbench.measured(owner)
        shown = columns(list(found), None, found, predicted=workbench.predicted(owner), figures=True)
        workbench.find(owner, MEASURED, measured_table(list(found.values())), shown)
        return
    panel = engine.panel_of(models[DENSE])
    if panel is None:
        raise InputError(
            "This model came without a classifier to judge its images; measure it with Inception features by"
            " numprune eval MODEL --images N --reference FILE.npz."
        )
    quality = {
        name: engine.image_quality(
            model,
            whole(given[making.samples], "Images to measure", empty=0),
            panel,
            panel.reference,
            engine.METRICS,
            seed=whole(given[making.image_seed], "First seed", empty=0),
            progress=job.progress,
            cancel=job.cancel,
            **drawing_of(making, given),
        )
        for name, model in models.items()
    }
    workbench.keep_quality(owner, quality)
    parameters = {name: model.parameters for name, model in models.items()}
    workbench.find(owner, QUALITY, quality_frame(quality, models), quality_table(quality, parameters))
