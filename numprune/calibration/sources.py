"""Calibration text of one source or of several in turn."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from numprune.calibration.data import Data, spelled, token_rows, window_start
from numprune.calibration.names import SELF, parse_sources
from numprune.calibration.self_samples import self_samples
from numprune.errors import CancelEvent, InputError, Progress
from numprune.models.model import Model


def shares(weights: Mapping[str, float], samples: int) -> dict[str, int]:
    """How many of the samples every source gives, by its weight; none gives less than one.

    Raises:
        InputError: there are more sources than samples.
    """
    if samples < len(weights):
        raise InputError(f"{samples} samples cannot come from {len(weights)} sources; ask for at least one of each.")
    total = sum(weights.values())
    exact = {name: samples * weight / total for name, weight in weights.items()}
    counts = {name: max(1, math.floor(share)) for name, share in exact.items()}
    while sum(counts.values()) != samples:
        # What rounding left goes to the largest rest; what the least of one took comes from where most is over.
        step = 1 if sum(counts.values()) < samples else -1
        name = max(
            (name for name in counts if counts[name] + step >= 1), key=lambda name: step * (exact[name] - counts[name])
        )
        counts[name] += step
    return counts


def draw_rows(
    model: Model,
    data: Data,
    samples: int,
    length: int,
    seed: int,
    notes: list[str],
    *,
    bos: bool = True,
    column: str | None = None,
    overlap: bool = True,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> torch.Tensor:
    """Token ids (sequences, tokens) from one source, or from several in turn, so that every part is mixed alike.

    Args:
        bos: whether every sequence of text begins as the tokenizer begins a text (with BOS, where it adds one); else
            only documents do.
        notes: what differs from the request, and the share of each of several sources, is added to it.
        column: the column of rows that holds the text; None for the first that is known by its name.
        overlap: whether windows may overlap where a text has too few that do not; else they are fewer. The first of
            those that do not overlap are the same however many are drawn.

    Raises:
        InputError: a source cannot be read or is too short.
        Cancelled: `cancel` was set.
    """
    # What the model writes itself begins as it should.
    start = () if isinstance(data, str) and data == SELF else window_start(model.tokenizer, data, bos)
    if start:
        notes.append(f"Every sequence of text begins with {spelled(model.tokenizer, start)}.")
    if not isinstance(data, str | os.PathLike):
        rows = _windows(*_streams(data, model, length, notes, column), samples, seed, start, overlap)
        return _counted(rows, samples, "The text", notes)
    weights = parse_sources(data)
    parts = {}
    for name, count in shares(weights, samples).items() if len(weights) > 1 else [(next(iter(weights)), samples)]:
        if name == SELF:
            rows = self_samples(model, count, length, seed, progress=progress, cancel=cancel)
        else:
            rows = _windows(*_streams(name, model, length, notes, column), count, seed, start, overlap)
        parts[name] = _counted(rows, count, "The text" if len(weights) == 1 else Path(name).name, notes)
    if len(parts) == 1:
        return next(iter(parts.values()))
    drawn = sum(map(len, parts.values()))
    told = ", ".join(f"{len(rows)} of {Path(name).name} ({len(rows) / drawn:.0%})" for name, rows in parts.items())
    notes.append(f"Calibration sequences: {told}.")
    return _in_turn(list(parts.values()))


def _counted(rows: torch.Tensor, samples: int, what: str, notes: list[str]) -> torch.Tensor:
    if len(rows) < samples:
        notes.append(f"{what} gave {len(rows)} of the {samples} samples asked for.")
    return rows


def _in_turn(parts: list[torch.Tensor]) -> torch.Tensor:
    """The rows of all parts, those of each spread evenly over the whole."""
    places = [((index + 0.5) / len(rows), part, index) for part, rows in enumerate(parts) for index in range(len(rows))]
    return torch.stack([parts[part][index] for _, part, index in sorted(places)])


def _streams(
    data: Data, model: Model, length: int, notes: list[str], column: str | None
) -> tuple[list[torch.Tensor], int]:
    """What windows are cut from, and how long: documents laid end to end, but given sequences each for itself."""
    rows = token_rows(data, model.tokenizer, "train", column)
    if not (isinstance(data, torch.Tensor) and data.ndim == 2):
        return [torch.cat(rows)] if rows else [], length
    if data.shape[1] < length:
        notes.append(f"The given sequences have {data.shape[1]} tokens, fewer than the {length} asked for.")
    return rows, min(length, data.shape[1])


def _windows(
    streams: list[torch.Tensor],
    length: int,
    samples: int,
    seed: int,
    start: tuple[int, ...] = (),
    overlap: bool = True,
) -> torch.Tensor:
    """Draw (samples, length) windows, side by side while there are enough, else overlapping; fewer when the text has
    not as many, or not as many side by side and `overlap` is not wanted. A window that does not begin with `start` gets
    it in front, and is cut to its length again."""
    tokens = sum(map(len, streams))
    if tokens < length or not tokens:
        raise InputError(
            f"The calibration text has {tokens} tokens, one sequence needs {length};"
            " give more text or a smaller sequence length."
        )
    whole, begins, begin = torch.cat(streams), [], 0
    for stream in streams:
        begins.append(begin + torch.arange(len(stream) - length + 1))
        begin += len(stream)
    places = torch.cat([each[::length] for each in begins])
    if len(places) < samples and overlap:
        places = torch.cat(begins)
    chosen = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:samples]]
    before = whole.new_tensor(start)
    windows = []
    for begin in chosen.tolist():
        window = whole[begin : begin + length]
        if not torch.equal(window[: len(before)], before):
            window = torch.cat([before, window])[:length]
        windows.append(window)
    return torch.stack(windows)
