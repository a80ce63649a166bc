"""Models that do not fit one device: their modules spread over several, the host's memory and the disk by accelerate.

They can be evaluated and generate. What changes a model, or reads all of its weights, wants it in one place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import check_device_map, convert_file_size_to_int, get_balanced_memory, get_max_memory
from torch import nn
from transformers import PreTrainedModel

from numprune.errors import InputError
from numprune.models.placement import own_parameters, resolve_device

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
DISK = "disk"

Place = int | str
"""A device as accelerate names it: the number of an accelerator, "cpu", or "disk"."""


@dataclass(frozen=True)
class Spread:
    """How a model is spread.

    Attributes:
        device_map: one of `STRATEGIES`, or a place for every module by the beginning of its name.
        max_memory: bytes that weights may take in a place; None for what is free there.
    """

    device_map: str | dict[str, Place]
    max_memory: dict[Place, int] | None = None

    @classmethod
    def of(cls, device_map: str | Mapping[str, Place], max_memory: Mapping[Place, int | str] | None = None) -> Spread:
        """Raises InputError for what is no way to spread a model."""
        if isinstance(device_map, str):
            if device_map not in STRATEGIES:
                raise InputError(
                    f"device_map is '{device_map}'; use {', '.join(STRATEGIES)}, or a device for every module."
                )
        else:
            if not isinstance(device_map, Mapping) or not device_map:
                raise InputError("device_map names no modules; give a device for every one, or auto.")
            device_map = {str(name): _place(place) for name, place in device_map.items()}
        if max_memory is None:
            return cls(device_map)
        allowed = {}
        for place, size in max_memory.items():
            where = _place(place)
            try:
                allowed[where] = convert_file_size_to_int(size)
            except ValueError as error:
                raise InputError(f"max_memory of {place} is '{size}'; give bytes such as 20GB or 500MB.") from error
        return cls(device_map, allowed)

    def of_module(self, module: PreTrainedModel) -> dict[str, Place]:
        """A place for every part of a module, which may have no memory yet.

        Raises:
            InputError: the map leaves parameters out.
        """
        module.tie_weights()
        if isinstance(self.device_map, str):
            device_map = self._by_strategy(module)
        else:
            device_map = dict(self.device_map)
            try:
                check_device_map(module, device_map)
            except ValueError as error:
                left_out = re.search(r"[\w.]+\.\w+", str(error))
                such = f", such as {left_out.group()}" if left_out else ""
                raise InputError(
                    f"The device map does not hold the whole model{such}; give a device for '' too."
                ) from error
        for name, source in _tied(module).items():
            # A tensor lies in one place.
            device_map[name.rpartition(".")[0]] = place_of(source, device_map)
        return dict(_parts(module, "", device_map))

    def _by_strategy(self, module: PreTrainedModel) -> dict[str, Place]:
        whole, memory = module._no_split_modules, self.max_memory
        if self.device_map == "sequential":
            memory = get_max_memory(memory)
        else:
            low = self.device_map == "balanced_low_0"
            memory = get_balanced_memory(module, memory, no_split_module_classes=whole, low_zero=low)
        return dict(infer_auto_device_map(module, max_memory=memory, no_split_module_classes=whole))


def _place(given: Any) -> Place:
    """Raises InputError for what is no device that is here."""
    text = str(given)
    if text in ("cpu", DISK):
        return text
    device = resolve_device(f"cuda:{text}" if text.isdigit() else text)
    if device.type == "cuda":
        return device.index or 0
    return str(device)


def _tied(module: PreTrainedModel) -> dict[str, str]:
    """Names of tensors that the architecture ties, and of what they are tied to."""
    return getattr(module, "all_tied_weights_keys", None) or {}


def _parts(part: nn.Module, name: str, device_map: Mapping[str, Place]) -> Iterator[tuple[str, Place]]:
    """The largest parts that lie in one place, and where: accelerate takes what is inside of a part it knows to be
    there too, so that none may lie in another."""
    tensors = (*part.named_parameters(name), *part.named_buffers(name))
    found = {place_of(each, device_map) for each, _ in tensors}
    own = {place_of(each, device_map) for each, _ in part.named_parameters(name, recurse=False)}
    if found and (len(found) == 1 or own):
        yield name, max(own or found, key=str)
        return
    for child, module in part.named_children():
        yield from _parts(module, f"{name}.{child}" if name else child, device_map)


def place_of(name: str, device_map: Mapping[str, Place]) -> Place:
    """Where a tensor is: what the longest fitting beginning of its name says."""
    fitting = [key for key in device_map if not key or name == key or name.startswith(f"{key}.")]
    return device_map[max(fitting, key=len)]


def told(module: PreTrainedModel) -> str:
    """A note of what a spread module has where."""
    sizes: dict[str, int] = {}
    own = {id(parameter) for parameter in own_parameters(module)}
    for name, parameter in module.named_parameters():
        if id(parameter) in own:
            place = str(place_of(name, getattr(module, "hf_device_map", {"": module.device})))
            sizes[place] = sizes.get(place, 0) + parameter.numel() * parameter.element_size()
    parts = [f"{size / 1e9:.3g} GB on {'device ' if place.isdigit() else ''}{place}" for place, size in sizes.items()]
    return f"Its weights: {', '.join(parts)}."


def dispatch(
    module: PreTrainedModel,
    state: dict[str, torch.Tensor],
    files: Mapping[str, tuple[Path, str]],
    spread: Spread,
    dtype: torch.dtype,
) -> list[str]:
    """Give a module without memory its weights, each in its place; those on the disk stay in the files they are in.

    Args:
        state: the tensors by the module's own names, as they are in their files.
        files: the file of a tensor and its name there; one that is not in `files` was made here.

    Returns:
        Names of parameters that got no weights.
    """
    device_map = spread.of_module(module)
    buffers = {name for name, _ in module.named_buffers()}  # which accelerate leaves where they are needed
    accelerators = [place for place in device_map.values() if place not in ("cpu", DISK)]
    index: dict[str, dict[str, str]] = {}
    held: dict[str, torch.Tensor] = {}
    for name in list(state):
        tensor, place = state.pop(name), place_of(name, device_map)
        if place == DISK and name in buffers:
            place = accelerators[0] if accelerators else "cpu"
        # What is empty here may be units of zeros in the file.
        if place == DISK and name in files and tensor.numel():
            file, own = files[name]
            index[name] = {"safetensors_file": str(file), "weight_name": own, "dtype": str(dtype).split(".")[1]}
            state[name] = torch.empty_like(tensor, dtype=dtype, device="meta")
            continue
        state[name] = tensor.to("cpu" if place == DISK else place, dtype)
        if place == DISK or (place == "cpu" and accelerators):
            held[name] = state[name]
    module.load_state_dict(state, strict=False, assign=True)
    module.tie_weights()
    for name, source in _tied(module).items():
        if name in state:
            continue  # it has weights of its own, whatever the config said
        if source in index:
            index[name] = index[source]
        elif place_of(name, device_map) == DISK and source in state:
            held[name] = state[source]
    missing = [name for name, value in module.named_parameters() if value.is_meta and name not in index]
    if not missing:
        dispatch_model(
            module,
            device_map,
            state_dict=held or None,
            offload_index=index or None,
            skip_keys=module._skip_keys_device_placement,
        )
    return missing
