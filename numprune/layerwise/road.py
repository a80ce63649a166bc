"""Whether a model is held in memory while it is pruned, or read layer by layer."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from numprune.errors import InputError
from numprune.layerwise.run import check_layerwise
from numprune.layerwise.stage import check_enough, in_words, needs_in_memory, needs_layer_by_layer
from numprune.models.embedded import embedded_model
from numprune.models.model import Model
from numprune.models.placement import resolve_device, resolve_dtype
from numprune.plan.recipe import Recipe
from numprune.ranks import joined

MANY = 20
"""Times that weights in float32 with their copy, moments and work take what they take on disk, and more."""
UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def memory_of(text: str) -> int | None:
    """Bytes that a text such as "24G", "800M" or "1500000000" stands for; None for "auto".

    Raises:
        InputError: it is no number of bytes.
    """
    if text == "auto":
        return None
    plain = text.strip().upper().removesuffix("B")
    number, unit = (plain[:-1], UNITS[plain[-1]]) if plain[-1:] in UNITS else (plain, 1)
    try:
        count = int(float(number) * unit)
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise InputError(f"Memory is '{text}'; give auto, or bytes such as 24G or 800M.")
    return count


def free_memory(device: torch.device) -> int:
    """Bytes that this process can use on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // joined().here


def may_be_large(name: str) -> bool:
    """Whether a model is worth a look at its sizes before it is loaded: not one that ships, nor a folder that fits many
    times into what is free."""
    if embedded_model(name) is not None:
        return False
    folder = Path(name)
    if not folder.is_dir():
        return True
    size = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    return size * MANY > free_memory(resolve_device("auto"))


def layer_by_layer(model: Model, recipe: Recipe, memory: int | None, device: str, dtype: str) -> str | None:
    """Why a model is to be pruned layer by layer, as a sentence for the report; None where it fits in memory.

    Args:
        model: opened on the CPU in its checkpoint's data type, so that nothing of it is in memory yet.
        memory: bytes that may be used; None for what is free on the device.
        device, dtype: what it is computed on and in, as of `numprune.load`.

    Raises:
        InputError: it does not fit, and the recipe needs the whole model, or even a layer is too much.
    """
    target = resolve_device(device)
    itemsize = resolve_dtype(dtype, model.config, target).itemsize
    allowed = free_memory(target) if memory is None else memory
    whole = needs_in_memory(model, itemsize, recipe).total
    if whole <= allowed:
        return None
    check_layerwise(recipe)
    check_enough(needs_layer_by_layer(model, itemsize, recipe, target), allowed, target)
    return (
        f"Done layer by layer: as a whole it takes about {in_words(whole)}, and"
        f" {in_words(allowed)} {'are free' if memory is None else 'were allowed'}."
    )
