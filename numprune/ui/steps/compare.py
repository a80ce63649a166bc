"""Step 5: the dense and the pruned model side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from numprune.errors import CancelEvent, Progress
from numprune.evaluation import Perplexity, Speed, measure_speed, perplexity
from numprune.generation import Sampling, stream_text
from numprune.models import Model, held_out_text
from numprune.ui import html
from numprune.ui.page import ACCELERATOR, Updates
from numprune.ui.workbench import Session, reporter

if TYPE_CHECKING:
    from numprune.ui.page import Page

PROMPT = "Once upon a time, a little rabbit found a red box in the garden."
WAITING = "Press Measure for perplexity, size and speed of both models."


@dataclass
class CompareStep:
    """Components of step 5."""

    prompt: gr.Textbox
    tokens: gr.Slider
    temperature: gr.Slider
    seed: gr.Number
    write: gr.Button
    measure: gr.Button
    own_text: gr.Textbox
    dense: gr.Textbox
    pruned: gr.Textbox
    figures: gr.HTML

    @property
    def outputs(self) -> set[Any]:
        return {self.dense, self.pruned, self.figures}

    def clear(self) -> Updates:
        return {self.dense: "", self.pruned: "", self.figures: html.empty(WAITING)}


def build() -> CompareStep:
    with gr.Column(elem_classes="np-step", elem_id="np-compare"):
        gr.Markdown("## 5 · Compare\nThe same prompt, seed and sampling for both models.")
        with gr.Row():
            prompt = gr.Textbox(
                PROMPT, label="Prompt", info="Both models continue this text.", lines=2, scale=3, min_width=320
            )
            with gr.Column(scale=1, min_width=160):
                write = gr.Button("Write side by side", variant="primary")
                measure = gr.Button("Measure", variant="secondary")
        with gr.Accordion("Sampling and text for perplexity", open=False):
            with gr.Row():
                tokens = gr.Slider(
                    16, 512, 160, step=16, label="New tokens", info="At most; the model's length limits it too."
                )
                temperature = gr.Slider(
                    0, 1.5, 0.7, step=0.05, label="Temperature", info="0 takes the likeliest token."
                )
                seed = gr.Number(1, precision=0, label="Seed", info="Another seed, another story.")
            own_text = gr.Textbox(
                "",
                label="Text for perplexity",
                info="Leave empty for the 48 stories written for this project and never trained on.",
                lines=3,
            )
        with gr.Row():
            dense = gr.Textbox(
                "",
                label="Dense",
                lines=10,
                interactive=False,
                placeholder="The dense model writes here.",
                min_width=300,
            )
            pruned = gr.Textbox(
                "",
                label="Pruned",
                lines=10,
                interactive=False,
                placeholder="The pruned model writes here.",
                min_width=300,
            )
        figures = gr.HTML(html.empty(WAITING))
    return CompareStep(prompt, tokens, temperature, seed, write, measure, own_text, dense, pruned, figures)


def write_both(
    dense: Model, pruned: Model, prompt: str, sampling: Sampling, cancel: CancelEvent
) -> Iterator[tuple[str, str]]:
    """Both texts so far, token by token: the two models take turns."""
    left_stream = stream_text(dense, [prompt], sampling, cancel=cancel)
    right_stream = stream_text(pruned, [prompt], sampling, cancel=cancel)
    left = right = prompt
    while True:
        step_left, step_right = next(left_stream, None), next(right_stream, None)
        if step_left is None and step_right is None:
            return
        left = step_left[0] if step_left else left
        right = step_right[0] if step_right else right
        yield left, right


@dataclass(frozen=True)
class Measured:
    """The figures of one model."""

    model: Model
    perplexity: Perplexity
    speed: Speed


def measure_one(model: Model, text: str, progress: Progress, cancel: CancelEvent) -> Measured:
    """Perplexity on `text` (the embedded stories when empty), then speed, with nothing else running."""
    data = [text] if text.strip() else held_out_text()
    length = model.maximum_length or 2048
    value = perplexity(model, data, sequence_length=min(2048, length), progress=progress, cancel=cancel)
    prompt = min(64, length // 2)
    speed = measure_speed(
        model, prompt_tokens=prompt, new_tokens=min(64, length - prompt), progress=progress, cancel=cancel
    )
    return Measured(model, value, speed)


def figures_table(dense: Measured, pruned: Measured) -> str:
    """Both models' figures with their ratio, and how they were measured."""

    def ratio(right: float, left: float) -> str:
        return f"{right / left:.2f}x"

    def spread(values: tuple[float, float, float]) -> str:
        return f"{values[0]:.1f} ({values[1]:.1f} to {values[2]:.1f})"

    def ppl(value: Perplexity) -> str:
        # First-order error of exp(nll).
        return f"{float(value):.3f} ± {float(value) * value.standard_error:.3f}"

    left, right = dense, pruned
    rows = [
        (
            "Parameters",
            f"{left.model.parameters:,}",
            f"{right.model.parameters:,}",
            ratio(right.model.parameters, left.model.parameters),
        ),
        (
            "Weights",
            html.memory(left.model.bytes),
            html.memory(right.model.bytes),
            ratio(right.model.bytes, left.model.bytes),
        ),
        ("Perplexity", ppl(left.perplexity), ppl(right.perplexity), ratio(right.perplexity, left.perplexity)),
        (
            "Decode, tokens/s",
            spread(left.speed.decode),
            spread(right.speed.decode),
            ratio(right.speed.decode[0], left.speed.decode[0]),
        ),
        (
            "Prefill, tokens/s",
            spread(left.speed.prefill),
            spread(right.speed.prefill),
            ratio(right.speed.prefill[0], left.speed.prefill[0]),
        ),
    ]
    speed, value = left.speed, left.perplexity
    small_print = [
        f"Perplexity over {value.tokens:,} tokens in {value.windows} windows of at most {value.sequence_length};"
        " ± is one standard error over windows.",
        f"Speed one model after the other: median (lowest to highest) of {speed.repetitions} runs after a warm-up,"
        f" batch {speed.batch}, {speed.prompt_tokens} prompt and {speed.new_tokens} new tokens, on {speed.device} in"
        f" {speed.dtype}. Below 1x is slower.",
    ]
    return html.table(["", "Dense", "Pruned", "Pruned / dense"], rows) + html.notes(small_print)


def wire(page: Page) -> None:
    step = page.compare

    def write(
        prompt: str, tokens: int, temperature: float, seed: int, session: Session, request: gr.Request
    ) -> Iterator[Updates]:
        with page.job(request) as cancel:
            dense, pruned = page.workbench.dense(session).model, page.workbench.pruned(session)
            sampling = Sampling(max_new_tokens=int(tokens), temperature=float(temperature), seed=int(seed))
            for left, right in write_both(dense, pruned, prompt, sampling, cancel):
                yield {step.dense: left, step.pruned: right}

    def measure(
        text: str,
        session: Session,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        with page.job(request) as cancel:
            dense, pruned = page.workbench.dense(session).model, page.workbench.pruned(session)
            both = [measure_one(model, text, reporter(bar), cancel) for model in (dense, pruned)]
            return {step.figures: figures_table(*both)}

    step.write.click(
        write,
        [step.prompt, step.tokens, step.temperature, step.seed, page.session],
        {step.dense, step.pruned},
        api_visibility="private",
        show_progress="minimal",
        **ACCELERATOR,
    )
    step.measure.click(
        measure,
        [step.own_text, page.session],
        {step.figures},
        api_visibility="private",
        **ACCELERATOR,
    )
