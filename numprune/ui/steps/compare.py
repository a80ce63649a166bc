"""Step 5: the dense and the pruned models side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import pandas as pd

from numprune.errors import CancelEvent, InputError, Progress
from numprune.evaluation.divergence import divergence
from numprune.evaluation.footprint import sizes
from numprune.evaluation.perplexity import Perplexity, perplexity
from numprune.evaluation.speed import Speed, measure_speed
from numprune.evaluation.sweep import SweepPoint, sweep
from numprune.generation import Sampling, stream_text
from numprune.models import Model, held_out_text
from numprune.ui import html
from numprune.ui.figures import divergence_chart, sweep_chart
from numprune.ui.page import ACCELERATOR, Updates, owner_of
from numprune.ui.steps import images, methods
from numprune.ui.steps.methods import ratios_of
from numprune.ui.texts import side_by_side
from numprune.ui.workbench import reporter

if TYPE_CHECKING:
    from numprune.ui.page import Page

PROMPT = "Once upon a time, a little rabbit found a red box in the garden."
DENSE = "Dense"
TEXTS, MEASURED = "Texts", "Measured"
DISTRIBUTIONS, BY_RATIO = "Next-token distributions", "Speed and memory by ratio"
WRITING = "Press Write side by side; the dense and the pruned models continue the prompt from the same seed."
MEASURING = "Press Measure for perplexity, size, speed and memory of every model."
MOST_MEASURED = 16384
"""Tokens a perplexity is measured on at most: WikiText-2 as a whole takes a CPU many minutes."""
MOST_PROMPTS = 8
MOST_TOKENS = 1024


@dataclass
class CompareStep:
    """Components of step 5."""

    shown: gr.CheckboxGroup
    images: images.ImagesPart
    part: gr.Column
    prompts: gr.Textbox
    tokens: gr.Slider
    temperature: gr.Slider
    top_k: gr.Number
    top_p: gr.Slider
    seed: gr.Number
    write: gr.Button
    texts: gr.HTML
    own_text: gr.Textbox
    measure: gr.Button
    figures: gr.HTML
    diverge: gr.Button
    divergence_figures: gr.HTML
    divergence: gr.Plot
    ratios: gr.Textbox
    sweep: gr.Button
    sweep_figures: gr.HTML
    sweep_chart: gr.Plot
    methods: methods.MethodsPart

    @property
    def sampling(self) -> set[Any]:
        return {self.prompts, self.tokens, self.temperature, self.top_k, self.top_p, self.seed}

    @property
    def outputs(self) -> set[Any]:
        charts = {self.divergence_figures, self.divergence, self.sweep_figures, self.sweep_chart}
        parts = {*self.images.outputs, *self.methods.outputs}
        return {self.shown, self.part, self.texts, self.figures, *charts, *parts}

    def clear(self, model: Model) -> Updates:
        """Empty, with the controls of a language or of an image model."""
        return {
            **self.offer({}),
            **self.images.clear(model),
            **self.methods.clear(),
            self.part: gr.Column(visible=model.adapter.reads_text),
            self.texts: html.empty(WRITING),
            self.figures: html.empty(MEASURING),
            self.divergence_figures: "",
            self.divergence: gr.Plot(None, visible=False),
            self.sweep_figures: "",
            self.sweep_chart: gr.Plot(None, visible=False),
        }

    def offer(self, variants: Mapping[str, Model]) -> Updates:
        """Choose among the tab's pruned models; the two newest are ticked."""
        names = list(variants)
        return {self.shown: gr.CheckboxGroup(names, value=names[-2:], visible=len(names) > 1)}


def build() -> CompareStep:
    with gr.Column(elem_classes="np-step", elem_id="np-compare"):
        gr.Markdown("## 5 · Compare\nThe same prompts or classes, seed and sampling for every model.")
        shown = gr.CheckboxGroup(
            [], label="Pruned models", info="Shown beside the dense model, which is always there.", visible=False
        )
        pictures = images.build()
        with gr.Column() as part:
            with gr.Row():
                prompts = gr.Textbox(
                    PROMPT,
                    label="Prompts",
                    info=f"One a line, at most {MOST_PROMPTS}; every model continues them.",
                    lines=2,
                    scale=3,
                    min_width=320,
                )
                write = gr.Button("Write side by side", variant="primary", scale=1, min_width=160)
            with gr.Accordion("Sampling", open=False), gr.Row():
                tokens = gr.Slider(
                    16, 512, 160, step=16, label="New tokens", info="At most; the model's length limits it."
                )
                temperature = gr.Slider(
                    0, 1.5, 0.7, step=0.05, label="Temperature", info="0 takes the likeliest token."
                )
                top_k = gr.Number(0, precision=0, minimum=0, label="Top-k", info="0 keeps every token.")
                top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p", info="1 keeps every token.")
                seed = gr.Number(1, precision=0, label="Seed", info="Another seed, another story.")
            texts = gr.HTML(html.empty(WRITING), elem_id="np-texts")
            own_text = gr.Textbox(
                "",
                label="Text to measure on",
                info="For perplexity (16,384 tokens) and distributions; empty: the stories no model was trained on.",
                lines=2,
            )
            with gr.Row():
                measure = gr.Button("Measure", variant="secondary")
                diverge = gr.Button("Compare next-token distributions", variant="secondary")
            figures = gr.HTML(html.empty(MEASURING), elem_id="np-figures")
            divergence_figures = gr.HTML("")
            divergence_plot = gr.Plot(label="Divergence from the dense model along the text", visible=False)
            with gr.Row(equal_height=False):
                ratios = gr.Textbox(
                    "0 0.1 0.2 0.3 0.5",
                    label="Ratios",
                    info="The open recipe is carried out and measured at each, one after the other.",
                    scale=3,
                )
                sweep_button = gr.Button("Speed and memory by ratio", variant="secondary", scale=1, min_width=160)
            sweep_figures = gr.HTML("", elem_id="np-sweep")
            sweep_plot = gr.Plot(label="Speed and memory against ratio", visible=False)
        methods_part = methods.build()
    return CompareStep(
        shown=shown,
        images=pictures,
        part=part,
        prompts=prompts,
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        write=write,
        texts=texts,
        own_text=own_text,
        measure=measure,
        figures=figures,
        diverge=diverge,
        divergence_figures=divergence_figures,
        divergence=divergence_plot,
        ratios=ratios,
        sweep=sweep_button,
        sweep_figures=sweep_figures,
        sweep_chart=sweep_plot,
        methods=methods_part,
    )


def prompts_of(text: str) -> list[str]:
    """The lines of the prompt box.

    Raises:
        InputError: there is none, or there are too many.
    """
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError("There is no prompt; write at least one line.")
    if len(prompts) > MOST_PROMPTS:
        raise InputError(f"There are {len(prompts)} prompts; write at most {MOST_PROMPTS} lines.")
    return prompts


def write_all(
    models: Sequence[Model], prompts: Sequence[str], sampling: Sampling, cancel: CancelEvent | None
) -> Iterator[list[list[str]]]:
    """All texts so far by model and prompt, token by token: the models take turns."""
    streams = [stream_text(model, list(prompts), sampling, cancel=cancel) for model in models]
    texts = [list(prompts) for _ in models]
    while True:
        steps = [next(stream, None) for stream in streams]
        if all(step is None for step in steps):
            return
        texts = [text if step is None else list(step) for text, step in zip(texts, steps, strict=True)]
        yield texts


@dataclass(frozen=True)
class Measured:
    """The figures of one model."""

    name: str
    model: Model
    perplexity: Perplexity
    speed: Speed


def measured_on(text: str) -> Any:
    """What the box describes: its text, or the held-out stories."""
    return [text] if text.strip() else held_out_text()


def measure_one(name: str, model: Model, text: str, progress: Progress | None, cancel: CancelEvent | None) -> Measured:
    """Perplexity on `text` (the embedded stories when empty), then speed, with nothing else running."""
    length = model.maximum_length or 2048
    value = perplexity(
        model,
        measured_on(text),
        sequence_length=min(2048, length),
        max_tokens=MOST_MEASURED,
        progress=progress,
        cancel=cancel,
    )
    prompt = min(64, length // 2)
    speed = measure_speed(
        model, prompt_tokens=prompt, new_tokens=min(64, length - prompt), progress=progress, cancel=cancel
    )
    return Measured(name, model, value, speed)


def spread(values: tuple[float, float, float], scale: float = 1.0, digits: int = 1) -> str:
    median, low, high = (f"{value * scale:.{digits}f}" for value in values)
    return f"{median} ({low} to {high})"


def figures_table(measured: Sequence[Measured]) -> str:
    """All models' figures, with their ratio to the first one's, and how they were measured."""
    first = measured[0]

    def row(name: str, shown: Any, value: Any) -> tuple[str, ...]:
        cells = [shown(each) for each in measured]
        ratios = [f" · {value(each) / value(first):.2f}x" if value(first) else "" for each in measured]
        return (name, cells[0], *(cell + ratio for cell, ratio in zip(cells[1:], ratios[1:], strict=True)))

    def ppl(each: Measured) -> str:
        # First-order error of exp(nll).
        value = each.perplexity
        return f"{float(value):.3f} ± {float(value) * value.standard_error:.3f}"

    def kv(each: Measured) -> int:
        return sizes(each.model).kv_bytes * 1000

    rows = [
        row("Parameters", lambda m: f"{m.model.parameters:,}", lambda m: m.model.parameters),
        row("Weights", lambda m: html.memory(m.model.bytes), lambda m: m.model.bytes),
        row("KV cache per 1,000 tokens", lambda m: html.memory(kv(m)), kv),
        row("Perplexity", ppl, lambda m: float(m.perplexity)),
        row("Decode, tokens/s", lambda m: spread(m.speed.decode), lambda m: m.speed.decode[0]),
        row("Prefill, tokens/s", lambda m: spread(m.speed.prefill), lambda m: m.speed.prefill[0]),
        row("Time to first token, ms", lambda m: spread(m.speed.first_token, 1e3), lambda m: m.speed.first_token[0]),
    ]
    if all(each.speed.peak_bytes for each in measured):
        rows.append(row("Peak memory, MB", lambda m: spread(m.speed.peak_bytes, 1e-6), lambda m: m.speed.peak_bytes[0]))
    speed, value = first.speed, first.perplexity
    small_print = [
        f"Perplexity over {value.tokens:,} tokens in {value.windows} windows of at most {value.sequence_length};"
        " ± is one standard error over windows.",
        f"Speed one model after the other: median (lowest to highest) of {speed.repetitions} runs after a warm-up,"
        f" batch {speed.batch}, {speed.prompt_tokens} prompt and {speed.new_tokens} new tokens, on {speed.device} in"
        f" {speed.dtype}. Peak memory: weights and what the process grows by while it generates. 1.00x is the dense"
        " model.",
    ]
    return html.table(["", *(each.name for each in measured)], rows) + html.notes(small_print)


def sweep_table(points: Sequence[SweepPoint]) -> pd.DataFrame:
    """One row per ratio, as `sweep_chart` reads it."""
    rows = []
    for point in points:
        row = {"ratio": point.ratio, "reached": point.reached, "parameters": point.sizes.parameters}
        for name in ("decode", "prefill"):
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), getattr(point.speed, name), strict=True))
        row |= {"weights": point.sizes.bytes, "kv": point.sizes.kv_bytes}
        row["perplexity"] = float("nan") if point.perplexity is None else float(point.perplexity)
        rows.append(row)
    return pd.DataFrame(rows)


def sweep_figures(points: Sequence[SweepPoint]) -> str:
    """The table twin of the chart."""
    rows = [
        (
            f"{point.ratio:.0%}",
            f"{point.sizes.parameters:,}",
            html.memory(point.sizes.bytes),
            html.memory(point.sizes.kv_bytes * 1000),
            spread(point.speed.decode),
            spread(point.speed.prefill),
            "" if point.perplexity is None else f"{float(point.perplexity):.2f}",
        )
        for point in points
    ]
    header = ["Ratio", "Parameters", "Weights", "KV cache per 1,000 tokens", "Decode, tokens/s", "Prefill, tokens/s"]
    speed = points[0].speed
    note = (
        f"Median (lowest to highest) of {speed.repetitions} runs after a warm-up, {speed.prompt_tokens} prompt and"
        f" {speed.new_tokens} new tokens, batch {speed.batch}, on {speed.device} in {speed.dtype}."
    )
    return html.table([*header, "Perplexity"], rows) + html.notes([note])


def wire(page: Page) -> None:
    step = page.compare

    def models(given: Updates, owner: str) -> dict[str, Model]:
        """The dense model and the ticked pruned ones by name."""
        dense = page.workbench.dense(given[page.session]).model
        variants = page.workbench.variants(owner)
        if not variants:
            raise InputError("There is no pruned model yet; press Prune in step 4.")
        ticked = [name for name in variants if name in (given[step.shown] or [])] or [next(reversed(variants))]
        return {DENSE: dense, **{name: variants[name] for name in ticked}}

    def write(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[Updates]:
        with page.job(request) as cancel:
            owner = owner_of(request)
            yield from made(page, models(given, owner), given, owner, reporter(bar), cancel)

    def measure(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        with page.job(request) as cancel:
            owner = owner_of(request)
            return measured(page, models(given, owner), given, owner, reporter(bar), cancel)

    def diverge(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Updates:
        with page.job(request) as cancel:
            owner = owner_of(request)
            (_, dense), *others = models(given, owner).items()
            text = measured_on(given[step.own_text])
            length = min(2048, dense.maximum_length or 2048)
            found = {
                name: divergence(
                    dense,
                    other,
                    text,
                    sequence_length=length,
                    limit=MOST_TOKENS,
                    progress=reporter(bar),
                    cancel=cancel,
                )
                for name, other in others
            }
            rows = [
                (name, f"{d.mean_kl:.4f} ± {d.standard_error:.4f}", f"{d.agreement:.1%}", f"{d.n:,}")
                for name, d in found.items()
            ]
            table = html.table(["", "KL(dense, pruned), nats a token", "Same likeliest token", "Tokens"], rows)
            table += html.notes(["± is one standard error over positions; the text is cut after 1,024 tokens."])
            tokens = next(iter(found.values())).tokens
            chart = divergence_chart(tokens, [(name, d.kl, d.agree) for name, d in found.items()])
            numbers = pd.concat(
                [
                    pd.DataFrame({"model": name, "token": d.tokens, "kl": d.kl, "same_top_1": d.agree})
                    for name, d in found.items()
                ]
            )
            page.workbench.find(owner, DISTRIBUTIONS, numbers, table, chart)
            return {step.divergence_figures: table, step.divergence: gr.Plot(chart, visible=True)}

    def by_ratio(
        given: Updates,
        request: gr.Request,
        bar: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[Updates]:
        with page.job(request) as cancel:
            owner, session = owner_of(request), given[page.session]
            loaded = page.workbench.dense(session)
            length = loaded.model.maximum_length or 2048
            prompt = min(64, length // 2)
            points: list[SweepPoint] = []
            for point in sweep(
                loaded.model,
                loaded.stats,
                loaded.scores,
                session.recipe,
                ratios_of(given[step.ratios]),
                data=measured_on(given[step.own_text]),
                prompt_tokens=prompt,
                new_tokens=min(64, length - prompt),
                progress=reporter(bar),
                cancel=cancel,
            ):
                points.append(point)
                numbers = sweep_table(points)
                chart = sweep_chart(numbers)
                page.workbench.find(owner, BY_RATIO, numbers, sweep_figures(points), chart)
                yield {step.sweep_figures: sweep_figures(points), step.sweep_chart: gr.Plot(chart, visible=True)}

    given = {page.session, step.shown}
    event = step.write.click(
        write,
        {*given, *step.sampling},
        {step.texts},
        api_visibility="private",
        show_progress="minimal",
        **ACCELERATOR,
    )
    page.stoppable.append(event)
    part = step.images
    event = part.draw.click(
        write,
        {*given, *part.settings},
        part.drawing_outputs,
        api_visibility="private",
        show_progress_on=part.pictures,
        **ACCELERATOR,
    )
    page.stoppable.append(event)
    images.wire(page)
    methods.wire(page)
    event = part.measure.click(
        measure,
        {*given, *part.settings},
        {part.quality},
        api_visibility="private",
        show_progress_on=part.quality,
        **ACCELERATOR,
    )
    page.stoppable.append(event)
    for button, handler, inputs, outputs in (
        (step.measure, measure, {step.own_text}, {step.figures}),
        (step.diverge, diverge, {step.own_text}, {step.divergence_figures, step.divergence}),
        (step.sweep, by_ratio, {step.own_text, step.ratios}, {step.sweep_figures, step.sweep_chart}),
    ):
        event = button.click(
            handler,
            {*given, *inputs},
            outputs,
            api_visibility="private",
            show_progress_on=step.figures if button is not step.sweep else step.ratios,
            **ACCELERATOR,
        )
        page.stoppable.append(event)


def made(
    page: Page,
    models: Mapping[str, Model],
    given: Updates,
    owner: str,
    progress: Progress,
    cancel: CancelEvent,
) -> Iterator[Updates]:
    """What every model makes of the same settings: texts or images."""
    if models[DENSE].adapter.reads_text:
        yield from written(page, models, given, owner, cancel)
    else:
        yield from images.drawn(page, models, given, owner, progress, cancel)


def written(
    page: Page, models: Mapping[str, Model], given: Updates, owner: str, cancel: CancelEvent
) -> Iterator[Updates]:
    """Every model's continuation of every prompt, as it grows."""
    step = page.compare
    prompts = prompts_of(given[step.prompts])
    sampling = Sampling(
        max_new_tokens=int(given[step.tokens]),
        temperature=float(given[step.temperature]),
        top_k=int(given[step.top_k] or 0),
        top_p=float(given[step.top_p]),
        seed=int(given[step.seed] or 0),
    )
    texts: list[list[str]] = [prompts] * len(models)
    for texts in write_all(list(models.values()), prompts, sampling, cancel):
        yield {step.texts: side_by_side(prompts, list(zip(models, texts, strict=True)))}
    rows = [
        {"model": name, "prompt": prompt, "text": text}
        for name, written in zip(models, texts, strict=True)
        for prompt, text in zip(prompts, written, strict=True)
    ]
    shown = side_by_side(prompts, list(zip(models, texts, strict=True)))
    page.workbench.find(owner, TEXTS, pd.DataFrame(rows), shown)


def measured(
    page: Page, models: Mapping[str, Model], given: Updates, owner: str, progress: Progress, cancel: CancelEvent
) -> Updates:
    """Perplexity, size, speed and memory of every model, or its images' quality, one after the other."""
    if not models[DENSE].adapter.reads_text:
        return images.assessed(page, models, given, owner, progress, cancel)
    text = given[page.compare.own_text]
    results = [measure_one(name, model, text, progress, cancel) for name, model in models.items()]
    table = figures_table(results)
    rows = [
        {
            "model": each.name,
            "parameters": each.model.parameters,
            "bytes": each.model.bytes,
            **each.perplexity.to_dict(),
            **each.speed.to_dict(),
        }
        for each in results
    ]
    page.workbench.find(owner, MEASURED, pd.DataFrame(rows), table)
    return {page.compare.figures: table}
