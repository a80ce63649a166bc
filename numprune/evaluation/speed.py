"""Generation speed, measured alone: nothing else of this process computes meanwhile."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import DynamicCache

from numprune.errors import CancelEvent, InputError, Progress, check_cancelled
from numprune.models.model import Model


@dataclass(frozen=True)
class Speed:
    """Median and range over repetitions.

    Attributes:
        prefill, decode: (median, lowest, highest) tokens per second.
        prompt_tokens, new_tokens, batch: the shape of one repetition.
        repetitions: measured ones, after one warm-up.
        device, dtype: where and in what.
    """

    prefill: tuple[float, float, float]
    decode: tuple[float, float, float]
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
    """Tokens per second of prefill and of greedy decoding with a cache (paper, section 4: input of 64 tokens).

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
    prefill, decode = [], []
    for repetition in range(repetitions + 1):
        check_cancelled(cancel)
        cache = DynamicCache(config=model.config)
        started = now(model.device)
        step = _step(model, prompt, cache)
        first = now(model.device)
        for _ in range(new_tokens):
            step = _step(model, step, cache)
        last = now(model.device)
        if repetition:
            prefill.append(batch * prompt_tokens / (first - started))
            decode.append(batch * new_tokens / (last - first))
        if progress is not None:
            progress(repetition + 1, repetitions + 1, "measuring speed")
    return Speed(
        prefill=_spread(prefill),
        decode=_spread(decode),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch=batch,
        repetitions=repetitions,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


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


def _spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)
