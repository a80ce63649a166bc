"""The device a model runs on and its data type."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from numprune.errors import InputError, LoadError
from numprune.models.dtypes import DTYPE_NAMES, dtype_name  # noqa: F401  (the name is asked for here)

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


def place(module: PreTrainedModel, name: str, device: torch.device) -> PreTrainedModel:
    """Put a module on a device, in eval mode and without gradients.

    Raises:
        LoadError: it does not fit the memory, which is told by the `name` of the model.
    """
    try:
        return module.to(device).eval().requires_grad_(False)
    except torch.OutOfMemoryError as error:
        raise LoadError(f"{name} does not fit the memory of {device}; choose dtype bfloat16 or device cpu.") from error


def resolve_device(device: str) -> torch.device:
    """The torch device `device` means; "auto" is CUDA, then MPS, then CPU."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"Device '{device}' is not available here; use auto, cpu, cuda or mps.") from error
    return resolved


def resolve_dtype(dtype: str | torch.dtype, config: Any, device: torch.device) -> torch.dtype:
    """The torch dtype `dtype` means for a checkpoint on a device."""
    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            raise InputError(f"Data type {dtype} cannot hold a model; use auto, checkpoint, {', '.join(DTYPES)}.")
        return dtype
    if dtype == "checkpoint" or (dtype == "auto" and device.type != "cpu"):
        return getattr(config, "dtype", None) or torch.float32
    if dtype == "auto":
        return torch.float32
    if dtype not in DTYPES:
        raise InputError(f"Data type '{dtype}' is not known; use auto, checkpoint, {', '.join(DTYPES)}.")
    return DTYPES[dtype]
