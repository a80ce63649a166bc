"""Speed and peak memory of generation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import DynamicCache

from numprune.errors import CancelEvent, InputError, Progress, check_cancelled
from numprune.evaluation.memory import growth, measurable
from numprune.models.model import Model
from numprune.models.placement import dtype_name


@dataclass(frozen=True)
class Speed:
    """Median and range over repetitions.

    Attributes:
        prefill, decode: (median, lowest, highest) tokens per second.
        first_token: (median, lowest, highest) seconds from the prompt to the first token.
        peak_bytes: (median, lowest, highest) peak memory of the model at work: the bytes of its weights and what
            is in use at the peak beyond what was before, the cache above all. In use means allocated by torch on
            CUDA and resident, for the whole process, on a CPU under Linux; None elsewhere, where it is not known.
            Other models in memory do not count.
        prompt_tokens, new_tokens, batch: the shape of one repetition.
        repetitions: timed ones, after one warm-up; up to three more measure the memory.
        device, dtype: where and in what.
    """

    prefill: tuple[float, float, float]
    decode: tuple[float, float, float]
    first_token: tuple[float, float, float]
    peak_bytes: tuple[float, float, float] | None
    prompt_tokens: int
    new_tokens: int
    batch: int
    repetitions: int
    device: str
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def measure_speed(
    model: Model,
    *,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    batch: int = 1,
    repetitions: int = 5,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Speed:
    """Speed and peak memory of prefill and of greedy decoding with a cache (paper, section 4: input of 64 tokens).

    Token values do not change the work, so the prompt is arbitrary; no token ends a repetition early.

    Raises:
        InputError: the lengths do not fit the model.
        Cancelled: `cancel` was set.
    """
    limit = model.maximum_length
    if limit is not None and prompt_tokens + new_tokens > limit:
        raise InputError(
            f"{prompt_tokens} + {new_tokens} tokens exceed the {limit} this model supports; ask for fewer."
        )
    if min(prompt_tokens, new_tokens, batch, repetitions) < 1:
        raise InputError("prompt_tokens, new_tokens, batch and repetitions must be at least 1.")
    prompt = torch.full((batch, prompt_tokens), 1, device=model.device)
    # Memory has repetitions of its own: measuring it would disturb the times.
    weighed = min(repetitions, 3) if measurable(model.device) else 0
    runs: list[tuple[float, float]] = []
    peaks: list[float] = []
    for done in range(1 + repetitions + weighed):
        check_cancelled(cancel)
        if done <= repetitions:
            runs.append(_repetition(model, prompt, new_tokens))
        else:
            peaks.append(model.bytes + growth(lambda: _repetition(model, prompt, new_tokens), model.device))
        if progress is not None:
            progress(done + 1, 1 + repetitions + weighed, "measuring speed")
    measured = runs[1:]
    return Speed(
        prefill=spread([batch * prompt_tokens / first for first, _ in measured]),
        decode=spread([batch * new_tokens / rest for _, rest in measured]),
        first_token=spread([first for first, _ in measured]),
        peak_bytes=spread(peaks) if peaks else None,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch=batch,
        repetitions=repetitions,
        device=str(model.device),
        dtype=dtype_name(model.dtype),
    )


def _repetition(model: Model, prompt: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and from there through `new_tokens` steps."""
    cache = DynamicCache(config=model.config)
    started = now(model.device)
    step = _step(model, prompt, cache)
    first = now(model.device)
    for _ in range(new_tokens):
        step = _step(model, step, cache)
    return first - started, now(model.device) - first


def _step(model: Model, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    logits = model.module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1:].argmax(-1)


def now(device: torch.device) -> float:
    """Seconds, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest."""
    return statistics.median(values), min(values), max(values)
