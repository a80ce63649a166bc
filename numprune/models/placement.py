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


def input_device(module: PreTrainedModel) -> torch.device:
    """Where a module takes its inputs: its device, or the first accelerator of those that accelerate spread it over."""
    if not hasattr(module, "hf_device_map"):
        return module.device
    accelerators = [place for place in module.hf_device_map.values() if place not in ("cpu", "disk")]
    return torch.device(accelerators[0] if accelerators else "cpu")


def own_parameters(module: PreTrainedModel) -> list[torch.nn.Parameter]:
    """The parameters, each once. A tied one that accelerate spread has a stand-in of its own in every place."""
    tied = getattr(module, "all_tied_weights_keys", None) or {}
    again = tied if hasattr(module, "hf_device_map") and module.config.tie_word_embeddings else {}
    return [parameter for name, parameter in module.named_parameters() if name not in again]


def check_together(module: PreTrainedModel, name: str) -> None:
    """Raise InputError for a module that is spread over several places."""
    if len({str(place) for place in getattr(module, "hf_device_map", {}).values()} - {"disk"}) > 1 or any(
        parameter.is_meta for parameter in module.parameters()
    ):
        raise InputError(
            f"{name} is spread over several devices, where it can be evaluated and generate; open it without device_map"
            " to score, prune, heal, save or export it, or prune it layer by layer (--memory)."
        )


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
