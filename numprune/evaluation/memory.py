"""Peak memory of a piece of work, where the device or the system tells it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from numprune.heap import give_back

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measurable(device: torch.device) -> bool:
    """Whether `growth` is known on a device: on CUDA, and on a CPU under Linux."""
    return device.type == "cuda" or (device.type == "cpu" and os.access(CLEAR_REFS, os.W_OK))


def growth(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes by which memory at its peak during `work` exceeds memory before it.

    On CUDA this is what torch allocated on the device, on a CPU the resident memory of the whole process, other
    threads included. Freed memory is handed back first where the system allows it; taking it again costs time,
    so `work` should not be timed.

    Args:
        device: a `measurable` one.
    """
    before = reset_peak(device)
    work()
    return max(peak(device) - before, 0)


def peak(device: torch.device) -> int:
    """Most bytes in use at a time since `reset_peak`, with what was in use then.

    Args:
        device: a `measurable` one.
    """
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def reset_peak(device: torch.device) -> int:
    """Bytes in use now; the peak starts from there.

    Args:
        device: a `measurable` one.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    give_back()
    CLEAR_REFS.write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    """A line of this process's status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
