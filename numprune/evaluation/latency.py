"""Decode times by width, measured once on a device and kept."""

from __future__ import annotations

import hashlib
import platform
import statistics
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
import transformers

from numprune.calibration.names import cache_folder
from numprune.errors import CancelEvent, InputError, NumpruneError, Progress
from numprune.evaluation.speed import Record, measure_in_turn
from numprune.files import from_json, to_json, write_text
from numprune.models.model import Model, slice_module
from numprune.models.placement import dtype_name
from numprune.plan.keys import KINDS, Kind
from numprune.plan.latency import Latency

SHARES = (0.25, 0.5, 0.75)
"""Of a module's units that its width is measured at, beside none, one and all of them."""
PROMPT_TOKENS = 64
NEW_TOKENS = 16
"""Decoded in a timed run."""
REPETITIONS = 5


def measure_latency(
    model: Model,
    *,
    batch: int = 1,
    prompt_tokens: int | None = None,
    repetitions: int = REPETITIONS,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Latency:
    """Decode times of a model by the width of its modules.

    For every width the attention, or the MLP, of all layers is cut to it, and that model and the whole one decode in
    turn; what a module of that width takes is the difference to the models without any, over their number. So it is
    measured where it is spent: between the other modules, with weights that come from memory. Nothing else should run
    on the device meanwhile.

    Args:
        batch: sequences decoded at once.
        prompt_tokens: tokens of each in the cache before; 64 by default, or as many as the model's length leaves.
        repetitions: timed runs of each width.

    Raises:
        InputError: the lengths do not fit the model, or repetitions is below 1.
        Cancelled: `cancel` was set.
    """
    if repetitions < 1:
        raise InputError(f"repetitions is {repetitions}; give at least 1.")
    if prompt_tokens is None:
        limit = model.maximum_length
        prompt_tokens = PROMPT_TOKENS if limit is None else max(1, min(PROMPT_TOKENS, limit - NEW_TOKENS))
    blocks = model.blocks
    kinds = [kind for kind in KINDS if any(block.key.kind == kind for block in blocks)]
    wanted = [(kind, share) for kind in kinds for share in (0.0, _ONE, *SHARES)]
    dense: list[float] = []
    saved: dict[tuple[Kind, float], float] = {}
    for done, (kind, share) in enumerate(wanted):
        if progress is not None:
            progress(done, len(wanted), "measuring decode times by width")
        keep = {block.key: range(_kept(share, block.units)) for block in blocks if block.key.kind == kind}
        narrow = model.around(slice_module(model.module, model.adapter, keep))
        both = measure_in_turn(
            [model, narrow],
            [1] * prompt_tokens,
            new_tokens=NEW_TOKENS,
            batch=batch,
            repetitions=repetitions,
            memory=False,
            cancel=cancel,
        )
        whole, cut = (_token_times(record) for record in both)
        dense += whole
        saved[kind, share] = statistics.median(a - b for a, b in zip(whole, cut, strict=True))
    widths = {}
    for kind in kinds:
        sizes = [(block.units, block.cost) for block in blocks if block.key.kind == kind]
        points = [
            (
                sum(_kept(share, units) * cost for units, cost in sizes) / len(sizes),
                (saved[kind, 0.0] - saved.get((kind, share), 0.0)) / len(sizes),
            )
            for share in (0.0, _ONE, *SHARES, 1.0)
        ]
        widths[kind] = _ascending(points)
    return Latency(
        dense=statistics.median(dense),
        modules={block.key: block.units * block.cost for block in blocks},
        widths=widths,
        batch=batch,
        prompt_tokens=prompt_tokens,
        repetitions=repetitions,
        device=device_name(model.device),
        dtype=dtype_name(model.dtype),
        threads=torch.get_num_threads(),
    )


_ONE = 1e-9
"""The share that stands for one unit."""


def _kept(share: float, units: int) -> int:
    return 0 if share == 0 else max(1, round(share * units))


def _token_times(record: Record) -> list[float]:
    """Seconds a token of every run: the median over its tokens, which a short pause of the machine does not move."""
    return [float(np.median(np.diff(run.seconds))) for run in record.runs]


def _ascending(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Points by size whose seconds do not fall, each size once; where measurements cross, their mean
    (pool adjacent violators)."""
    by_size = dict(sorted(points))
    pools: list[list[float]] = []
    for seconds in by_size.values():
        pools.append([seconds])
        while len(pools) > 1 and statistics.mean(pools[-2]) > statistics.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    smooth = [statistics.mean(pool) for pool in pools for _ in pool]
    # What is gone takes nothing.
    return tuple((size, max(seconds - smooth[0], 0.0)) for size, seconds in zip(by_size, smooth, strict=True))


def device_name(device: torch.device) -> str:
    """What a device is called in a table of times."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def latency_of(
    model: Model, *, again: bool = False, progress: Progress | None = None, cancel: CancelEvent | None = None
) -> Latency:
    """The decode times of a model on its device, as `measure_latency` finds them; measured once and kept in numprune's
    cache folder.

    Args:
        again: measure even where they are kept.
    """
    path = cache_folder() / f"latency-{_identity(model)}.json"
    if not again:
        with suppress(OSError, ValueError, InputError):  # there is none yet, or what is there is no table
            return Latency.from_dict(from_json(path.read_text(encoding="utf-8")))
    found = measure_latency(model, progress=progress, cancel=cancel)
    with suppress(NumpruneError):  # the file only saves time
        write_text(path, to_json(found.to_dict()))
    return found


def _identity(model: Model) -> str:
    """What decode times depend on: sizes, not weights, and everything they are computed with."""
    device = model.device
    parts = [
        *(torch.__version__, transformers.__version__, platform.node(), device_name(device), torch.get_num_threads()),
        *(dtype_name(model.dtype), model.architecture, SHARES),
        *((tuple(value.shape), str(value.dtype)) for value in model.module.state_dict().values()),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
