"""What is measured of a model, and how several models are set side by side: one column each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from numprune.errors import CancelEvent, InputError, Progress
from numprune.models.embedded import held_out_text
from numprune.ui import engine, html
from numprune.ui.texts import side_by_side

if TYPE_CHECKING:
    from numprune.evaluation.perplexity import Perplexity
    from numprune.evaluation.speed import Speed
    from numprune.generation import Sampling
    from numprune.models import Model


DENSE = "Dense"
DECODE, PREFILL = "Decode, tokens/s", "Prefill, tokens/s"
MOST_MEASURED = 16384
"""Tokens a perplexity is measured on at most: WikiText-2 as a whole takes a CPU many minutes."""
MOST_PROMPTS = 8


@dataclass(frozen=True)
class Written:
    """What models made of the same prompts and sampling.

    Attributes:
        texts: by model and prompt, prompts included.
    """

    prompts: tuple[str, ...]
    sampling: Sampling
    texts: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Measured:
    """The figures of one model.

    Attributes:
        decode_gain, prefill_gain: how many times as fast it is as the first of the models it was timed in turn with:
            median, lowest and highest.
        text: that perplexity was measured on; empty for the held-out stories.
    """

    name: str
    model: Model
    perplexity: Perplexity
    speed: Speed
    decode_gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    prefill_gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    text: str = ""


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
    models: Mapping[str, Model], prompts: Sequence[str], sampling: Sampling, cancel: CancelEvent | None
) -> Iterator[Written]:
    """All texts so far, token by token: the models take turns."""
    streams = {
        name: engine.stream_text(model, list(prompts), sampling, cancel=cancel) for name, model in models.items()
    }
    texts: dict[str, Sequence[str]] = {name: list(prompts) for name in models}
    while True:
        steps = {name: next(stream, None) for name, stream in streams.items()}
        if all(step is None for step in steps.values()):
            return
        texts = {name: texts[name] if step is None else list(step) for name, step in steps.items()}
        yield Written(tuple(prompts), sampling, texts)


def measured_on(text: str) -> Any:
    """What the box describes: its text, or the held-out stories."""
    return [text] if text.strip() else held_out_text()


def measure_models(
    models: Mapping[str, Model],
    text: str,
    progress: Progress | None,
    cancel: CancelEvent | None,
    known: Mapping[str, Perplexity] | None = None,
) -> list[Measured]:
    """Perplexity on `text` (the embedded stories when empty) where it is not known, one model after the other; then
    speed, the models in turn and with nothing else running."""
    length = min(model.maximum_length or 2048 for model in models.values())
    values = {
        name: (known or {}).get(name)
        or engine.perplexity(
            model,
            measured_on(text),
            sequence_length=min(2048, model.maximum_length or 2048),
            max_tokens=MOST_MEASURED,
            progress=progress,
            cancel=cancel,
        )
        for name, model in models.items()
    }
    prompt = min(64, length // 2)
    timed = engine.compare_speed(
        models, prompt_tokens=prompt, new_tokens=min(64, length - prompt), progress=progress, cancel=cancel
    ).models
    return [
        Measured(each.name, models[each.name], values[each.name], each.speed, each.decode_gain, each.prefill_gain, text)
        for each in timed
    ]


def measured_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row a model, everything that was measured of it."""
    return pd.DataFrame(
        [
            {
                "model": each.name,
                "parameters": each.model.parameters,
                "bytes": each.model.bytes,
                **each.perplexity.to_dict(),
                **each.speed.to_dict(),
                "decode_gain": each.decode_gain,
                "prefill_gain": each.prefill_gain,
            }
            for each in measured
        ]
    )


def written_table(written: Written) -> pd.DataFrame:
    """One row a model and prompt."""
    return pd.DataFrame(
        [
            {"model": name, "prompt": prompt, **asdict(written.sampling), "text": text}
            for name, texts in written.texts.items()
            for prompt, text in zip(written.prompts, texts, strict=True)
        ]
    )


def loss_added(dense: Perplexity, pruned: Perplexity) -> float:
    """ln PPL pruned - ln PPL dense, nats a token."""
    return pruned.nll - dense.nll


def headline(each: Measured, dense: Measured | None, predicted: float | None = None) -> str:
    """A model's figures in one line."""
    parts = [f"PPL {float(each.perplexity):.2f}"]
    if dense is not None and each is not dense:
        foretold = "" if predicted is None else f", {predicted:+.3f} predicted"
        parts[0] += f" ({loss_added(dense.perplexity, each.perplexity):+.3f} nats{foretold})"
    parts.append(f"{each.speed.decode[0]:.1f} tokens/s")
    if dense is not None and each is not dense:
        parts.append(f"<b>{each.decode_gain[0]:.2f}×</b>")
    return f"<span class='np-headline'>{' · '.join(parts)}</span>"


def columns(
    names: Sequence[str],
    written: Written | None,
    measured: Mapping[str, Measured],
    *,
    predicted: Mapping[str, float | None],
    figures: bool,
) -> str:
    """One column a model: its figures in a line, its texts, and all its figures below where `figures` says so.

    Args:
        names: of the models, the dense one first.
        predicted: losses, by model.
    """
    dense = measured.get(DENSE)
    heads = {name: headline(measured[name], dense, predicted.get(name)) for name in names if name in measured}
    shown = ""
    if written is not None and any(name in written.texts for name in names):
        texts = [(name, written.texts.get(name, written.prompts)) for name in names]
        shown = side_by_side(written.prompts, texts, heads)
    elif heads:
        shown = side_by_side([""], [(name, [""]) for name in names], heads)
    found = [measured[name] for name in names if name in measured]
    if found and figures:
        shown += figure_columns(names, measured)
    return shown + (html.notes(small_print(found[0])) if found else "")


def spread(values: tuple[float, float, float], scale: float = 1.0, digits: int = 1) -> str:
    median, low, high = (f"{value * scale:.{digits}f}" for value in values)
    return f"{median} ({low} to {high})"


def figure_rows(each: Measured) -> list[tuple[str, str, float]]:
    """Name, text and value of every figure of a model."""
    value, speed = each.perplexity, each.speed
    kv = engine.sizes(each.model).kv_bytes * 1000
    rows = [
        ("Parameters", f"{each.model.parameters:,}", each.model.parameters),
        ("Weights", html.memory(each.model.bytes), each.model.bytes),
        ("KV cache per 1,000 tokens", html.memory(kv), kv),
        # First-order error of exp(nll).
        ("Perplexity", f"{float(value):.3f} ± {float(value) * value.standard_error:.3f}", float(value)),
        (DECODE, spread(speed.decode), speed.decode[0]),
        (PREFILL, spread(speed.prefill), speed.prefill[0]),
        ("Time to first token, ms", spread(speed.first_token, 1e3), speed.first_token[0]),
    ]
    if speed.peak_bytes:
        rows.append(("Peak memory, MB", spread(speed.peak_bytes, 1e-6), speed.peak_bytes[0]))
    return rows


def figure_columns(names: Sequence[str], measured: Mapping[str, Measured]) -> str:
    """All figures under the columns of the models, with their ratio to the dense model's; speeds by runs made side by
    side."""
    dense = {name: value for name, _, value in figure_rows(measured[DENSE])} if DENSE in measured else {}
    cells = ""
    for name in names:
        rows = ""
        each = measured.get(name)
        timed = {} if each is None else {DECODE: each.decode_gain[0], PREFILL: each.prefill_gain[0]}
        for label, shown, value in figure_rows(each) if each is not None else ():
            times = timed.get(label, value / dense[label] if dense.get(label) else 0)
            ratio = f" · {times:.2f}x" if name != DENSE and dense.get(label) else ""
            rows += f"<dt>{escape(label)}</dt><dd>{escape(shown)}{ratio}</dd>"
        cells += f"<dl aria-label='Figures of {escape(name, quote=True)}'>{rows}</dl>"
    return f"<div class='np-figures' style='--n:{len(names)}'>{cells}</div>"


def small_print(each: Measured) -> list[str]:
    """How the figures were measured."""
    speed, value = each.speed, each.perplexity
    begin = f", each beginning with {value.start}" if value.start else ""
    return [
        f"Perplexity over {value.tokens:,} tokens in {value.windows} windows of at most {value.sequence_length}{begin};"
        " ± is one standard error over windows. Speed with the models in turn: median (lowest to highest) of"
        f" {speed.repetitions} runs of each after a warm-up, batch {speed.batch}, {speed.prompt_tokens} prompt and"
        f" {speed.new_tokens} new tokens, on {speed.device} in {speed.dtype}; 1.00x is the dense model.",
    ]
