"""Models timed in turn on the same prompt, beside what their sizes promise."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

from numprune.errors import CancelEvent, InputError, Progress
from numprune.evaluation.footprint import sizes
from numprune.evaluation.repeats import FEWEST
from numprune.evaluation.speed import Record, Run, Speed, gain_over, measure_in_turn, speed_of
from numprune.models.model import Model


@dataclass(frozen=True)
class Timed:
    """One model of a comparison.

    Attributes:
        name: it goes by.
        speed: median and range of its runs.
        decode_gain, prefill_gain: its speed over the first model's, run by run: (median, lowest, highest). Below 1 it
            is slower.
        step_bytes: weights that decoding one token reads, and the cache of all sequences half-way through.
        prompt_flops: operations that reading all prompts takes, as `numprune.Sizes.flops` counts them; the output
            head runs at their last tokens only.
        memory: bytes of the weights, and of the cache when the run ends.
        run: the one with the median time, token by token.
        pieces: what each of its tokens adds to the text.
    """

    name: str
    speed: Speed
    decode_gain: tuple[float, float, float]
    prefill_gain: tuple[float, float, float]
    step_bytes: int
    prompt_flops: int
    memory: int
    run: Run
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class SpeedComparison:
    """Models timed in turn; the first one is what the others are compared with. `threads` are those of torch."""

    models: list[Timed]
    threads: int

    def promised(self, timed: Timed) -> dict[str, float]:
        """How many times as fast a model would be as the first one if sizes alone decided: decoding where it waits
        for weights and cache to be read, the prompt where it waits for arithmetic. `memory` is the share it needs."""
        first = self.models[0]
        return {
            "decode": first.step_bytes / timed.step_bytes,
            "prefill": first.prompt_flops / timed.prompt_flops,
            "memory": timed.memory / first.memory,
        }

    def to_pandas(self) -> pd.DataFrame:
        """One row per model: medians with lowest and highest, gains, what sizes promise, and what it was measured on.

        Speeds are tokens per second over all sequences, `first_token` seconds, memory bytes.
        """
        rows = []
        for timed in self.models:
            row: dict[str, Any] = {"name": timed.name}
            for name, values in (
                *((name, getattr(timed.speed, name)) for name in ("decode", "prefill", "first_token", "peak_bytes")),
                ("decode_gain", timed.decode_gain),
                ("prefill_gain", timed.prefill_gain),
            ):
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), values or (float("nan"),) * 3, strict=True))
            row |= {f"{name}_promised": value for name, value in self.promised(timed).items()}
            row["memory"] = timed.memory
            speed = timed.speed
            row |= {name: getattr(speed, name) for name in ("batch", "prompt_tokens", "new_tokens", "repetitions")}
            rows.append({**row, "device": speed.device, "dtype": speed.dtype, "threads": self.threads})
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        return {
            "models": [{**asdict(timed), "promised": self.promised(timed)} for timed in self.models],
            "threads": self.threads,
        }


def compare_speed(
    models: Mapping[str, Model],
    *,
    prompt: Sequence[int] | None = None,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    batch: int = 1,
    repetitions: int = FEWEST,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> SpeedComparison:
    """Time models in turn: each once to warm up, then A B A B, so that whatever slows the machine slows all of them.

    Every token's time is kept, of greedy decoding with a cache that no token ends early. Nothing else should run on
    the device meanwhile.

    Args:
        models: by the names they are to go by; the others are compared with the first one.
        prompt: token ids to continue; None for arbitrary ones, since values do not change the work.
        prompt_tokens: how many of those.
        new_tokens: decoded after the first token.
        batch: sequences at once, all of the same prompt.
        repetitions: timed runs of each model, at least 3.

    Raises:
        InputError: there is no model, too few repetitions, or the lengths do not fit a model.
        Cancelled: `cancel` was set.
    """
    if not models:
        raise InputError("There is no model to time; give at least one.")
    if repetitions < FEWEST:
        raise InputError(f"repetitions is {repetitions}; give at least {FEWEST}, fewer show no spread.")
    prompt = [1] * prompt_tokens if prompt is None else list(prompt)
    records = measure_in_turn(
        list(models.values()),
        prompt,
        new_tokens=new_tokens,
        batch=batch,
        repetitions=repetitions,
        progress=progress,
        cancel=cancel,
    )
    return SpeedComparison(
        [
            _timed(name, model, record, records[0], len(prompt), batch)
            for (name, model), record in zip(models.items(), records, strict=True)
        ],
        torch.get_num_threads(),
    )


def _timed(name: str, model: Model, record: Record, first: Record, prompt_tokens: int, batch: int) -> Timed:
    speed = speed_of(model, record, prompt_tokens, batch)
    decode_gain, prefill_gain = gain_over(first, record)
    run = _median_run(record.runs)
    end = prompt_tokens + speed.new_tokens
    size = sizes(model)
    return Timed(
        name=name,
        speed=speed,
        decode_gain=decode_gain,
        prefill_gain=prefill_gain,
        step_bytes=size.bytes - looked_up_bytes(model) + batch * size.kv_bytes * (prompt_tokens + end) // 2,
        prompt_flops=batch * prompt_flops(model, prompt_tokens),
        memory=size.bytes + batch * size.kv_bytes * end,
        run=run,
        pieces=tuple(model.token_names(run.tokens)),
    )


def _median_run(runs: Sequence[Run]) -> Run:
    middle = statistics.median_low([run.seconds[-1] for run in runs])
    return next(run for run in runs if run.seconds[-1] == middle)


def looked_up_bytes(model: Model) -> int:
    """Bytes of an embedding of which a step reads single rows: one that is not the output head as well."""
    table, head = model.module.get_input_embeddings(), model.module.get_output_embeddings()
    if not isinstance(table, nn.Embedding) or (head is not None and table.weight is head.weight):
        return 0
    return table.weight.numel() * table.weight.element_size()


def prompt_flops(model: Model, tokens: int) -> int:
    """Operations that reading a prompt takes; the output head runs at its last token only."""
    head = model.module.get_output_embeddings()
    head_flops = 0 if head is None else 2 * head.weight.numel()
    return sizes(model, context=tokens // 2).flops * tokens - head_flops * (tokens - 1)
