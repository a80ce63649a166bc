"""Speed and peak memory of generation, of one model or of several in turn, token by token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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


@dataclass(frozen=True)
class Run:
    """One repetition.

    Attributes:
        tokens: the first sequence's, (1 + new tokens,): the one after the prompt, and those decoded from there.
        seconds: from the start until each of them was there, ascending.
    """

    tokens: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.seconds[0]

    @property
    def rest(self) -> float:
        """Seconds from there to the last one."""
        return self.seconds[-1] - self.seconds[0]


@dataclass
class Record:
    """What was measured of one model: its timed runs and its peaks of memory in bytes."""

    runs: list[Run] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)


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
    if prompt_tokens < 1:
        raise InputError("prompt_tokens, new_tokens, batch and repetitions must be at least 1.")
    (record,) = measure_in_turn(
        [model],
        [1] * prompt_tokens,
        new_tokens=new_tokens,
        batch=batch,
        repetitions=repetitions,
        progress=progress,
        cancel=cancel,
    )
    return speed_of(model, record, prompt_tokens, batch)


def measure_in_turn(
    models: Sequence[Model],
    prompt: Sequence[int],
    *,
    new_tokens: int,
    batch: int,
    repetitions: int,
    memory: bool = True,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> list[Record]:
    """Run each model once to warm up, then all of them in turn, A B A B, so that what slows the machine down for a
    while slows all of them down.

    Args:
        prompt: token ids that every sequence of the batch begins with.
        repetitions: timed runs of each model.
        memory: whether up to three more of each measure the memory.

    Raises:
        InputError: the lengths do not fit a model.
        Cancelled: `cancel` was set.
    """
    if min(len(prompt), new_tokens, batch, repetitions) < 1:
        raise InputError("prompt_tokens, new_tokens, batch and repetitions must be at least 1.")
    for model in models:
        limit = model.maximum_length
        if limit is not None and len(prompt) + new_tokens > limit:
            raise InputError(
                f"{len(prompt)} + {new_tokens} tokens exceed the {limit} this model supports; ask for fewer."
            )
    prompts = [torch.tensor([list(prompt)] * batch, device=model.device) for model in models]
    records = [Record() for _ in models]
    # Memory has repetitions of its own: measuring it would disturb the times.
    weighed = min(repetitions, 3) if memory else 0
    work = [(each, done) for done in range(1 + repetitions + weighed) for each in range(len(models))]
    work = [(each, done) for each, done in work if done <= repetitions or measurable(models[each].device)]
    for finished, (each, done) in enumerate(work, 1):
        check_cancelled(cancel)
        model, ids = models[each], prompts[each]
        if done > repetitions:
            grown = growth(lambda model=model, ids=ids: run_once(model, ids, new_tokens, cancel), model.device)
            records[each].peaks.append(model.bytes + grown)
        else:
            run = run_once(model, ids, new_tokens, cancel)
            if done:
                records[each].runs.append(run)
        if progress is not None:
            progress(finished, len(work), "measuring speed")
    return records


def speed_of(model: Model, record: Record, prompt_tokens: int, batch: int) -> Speed:
    """Median and range of what was measured of a model."""
    runs, new_tokens = record.runs, len(record.runs[0].tokens) - 1
    return Speed(
        prefill=spread([batch * prompt_tokens / run.first for run in runs]),
        decode=spread([batch * new_tokens / run.rest for run in runs]),
        first_token=spread([run.first for run in runs]),
        peak_bytes=spread(record.peaks) if record.peaks else None,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch=batch,
        repetitions=len(runs),
        device=str(model.device),
        dtype=dtype_name(model.dtype),
    )


def gain_over(first: Record, record: Record) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """How many times as fast as another model one decoded and read the prompt, run by run: median and range of each.

    Both were measured in turn, so that each run is compared with the one made beside it.
    """
    pairs = list(zip(first.runs, record.runs, strict=True))
    return spread([a.rest / b.rest for a, b in pairs]), spread([a.first / b.first for a, b in pairs])


@torch.inference_mode()
def run_once(model: Model, prompt: torch.Tensor, new_tokens: int, cancel: CancelEvent | None) -> Run:
    """Read the prompt and decode so many tokens more, noting when each was there."""
    cache, clock = DynamicCache(config=model.config), Clock(model.device)
    tokens = [_step(model, prompt, cache)]
    clock.note()
    for _ in range(new_tokens):
        check_cancelled(cancel)
        tokens.append(_step(model, tokens[-1], cache))
        clock.note()
    return Run(tuple(torch.cat(tokens, dim=1)[0].tolist()), clock.seconds())


def _step(model: Model, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    logits = model.module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1:].argmax(-1)


class Clock:
    """Notes when a device reaches a point in its work, counted from when the clock was made.

    On CUDA the device notes it itself, so that the program need not wait for it after every token.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = now(device)
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        if device.type == "cuda":
            self.note()

    def note(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
        else:
            self._times.append(now(self._device) - self._began)

    def seconds(self) -> tuple[float, ...]:
        """All that was noted."""
        if self._device.type != "cuda":
            return tuple(self._times)
        now(self._device)
        start, *others = self._events
        return tuple(start.elapsed_time(event) / 1e3 for event in others)


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
