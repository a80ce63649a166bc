"""Benchmarks as records: figures over repetitions, what they were measured on, and the clock they are taken with."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from numprune.errors import Progress
from numprune.evaluation.speed import now


@dataclass(frozen=True)
class Figure:
    """One quantity over `n` repetitions; `aim` is what it should be, in words, where there is an aim."""

    name: str
    unit: str
    n: int
    median: float
    min: float
    max: float
    aim: str | None = None

    @classmethod
    def of(cls, name: str, unit: str, values: Sequence[float], aim: str | None = None) -> Figure:
        return cls(name, unit, len(values), statistics.median(values), min(values), max(values), aim)


@dataclass(frozen=True)
class Benchmark:
    """The figures of one claim, and what they were measured on."""

    name: str
    device: str
    dtype: str
    settings: dict[str, Any]
    figures: list[Figure]
    notes: list[str] = field(default_factory=list)

    def figure(self, name: str) -> Figure:
        return next(figure for figure in self.figures if figure.name == name)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def machine() -> dict[str, Any]:
    """What the figures depend on besides the device."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpu": platform.machine(), "gpu": gpu}


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds until the device has finished `work`."""
    began = now(device)
    work()
    return now(device) - began


def quotients(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """One value over the other, repetition by repetition."""
    return [a / b for a, b in zip(above, below, strict=True)]


def told(progress: Progress | None, done: int, total: int, what: str) -> None:
    """Report progress where somebody asked for it."""
    if progress is not None:
        progress(done, total, what)
