"""A folder of a stock class with no custom code, for models whose layers all kept the same counts.

The config then simply has fewer heads and channels. A candidate config is only taken when the class, built from it, has
every tensor of the model in its shape and the same rotary frequencies, so an architecture that derives the width of a
head from the number of heads is refused by what it does and not by name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import MistralConfig, PreTrainedModel

from numprune.errors import CancelEvent, Progress, check_cancelled
from numprune.export.transformers import (
    explicit_config,
    loading_code,
    serving_lines,
    shapes,
    unknown_layers,
    write_companions,
)
from numprune.models.empty import without_memory
from numprune.models.layer_sizes import layer_values, text_config
from numprune.models.model import Model
from numprune.models.written import write_module
from numprune.plan.keys import KINDS


def refusal(model: Model) -> str | None:
    """Why no stock class is this model; None when one is."""
    reason = unknown_layers(model)
    if reason is not None:
        return reason
    for kind, what in zip(KINDS, ("KV heads", "MLP channels"), strict=True):
        counts = sorted(_counts(model, kind))
        if len(counts) > 1:
            return f"keeps {counts[0]} to {counts[-1]} {what}, not the same in every layer (as prune --uniform would)"
        if counts == [0]:
            return f"keeps no {what} at all"
    if _stock_config(model) is None:
        return f"has counts or biases that {type(model.config).__name__} cannot express"
    return None


def write(model: Model, folder: Path, *, progress: Progress | None, cancel: CancelEvent | None) -> list[str]:
    """Write the folder; biases the class has and the model has not are zeros."""
    module = _built(_stock_config(model), model)
    check_cancelled(cancel)
    state = model.module.state_dict()
    added = [name for name in module.state_dict() if name not in state]
    for name, tensor in module.state_dict().items():
        state.setdefault(name, torch.zeros(tensor.shape, dtype=model.dtype))
    module.load_state_dict(state, assign=True)
    module.tie_weights()
    module.generation_config = copy.deepcopy(model.module.generation_config)
    write_module(module, folder, model.written_dtype)
    write_companions(model, folder)
    notes = [f"It is a {type(module).__name__} with no custom code."]
    if added:
        notes.append(f"{len(added)} biases that this class has and the model had not are zeros.")
    return notes


def snippet(model: Model, path: Path) -> str:
    return loading_code(model, path) + (serving_lines(path) if model.adapter.reads_text else "")


def _counts(model: Model, kind: str) -> set[int]:
    return {count for key, count in model.units().items() if key.kind == kind}


def _stock_config(model: Model) -> Any:
    """The first config whose class is the model; None when there is none."""
    for config in _candidates(model):
        if _expresses(config, model):
            return config
    return None


def _candidates(model: Model) -> Iterator[Any]:
    """The architecture's own config with the kept counts, then with biases, then Mistral's instead of Llama's.

    LlamaConfig wants heads to divide the hidden size; MistralConfig takes any number of heads of a given width and its
    class, without a window, computes the same.
    """
    config = explicit_config(model.config)
    text = text_config(config)
    values: dict[str, int] = {}
    for kind in KINDS:
        values.update(layer_values(text, kind, *_counts(model, kind)))
    for name, value in values.items():
        setattr(text, name, value)
    yield config
    for flags in (("attention_bias",), ("mlp_bias",), ("attention_bias", "mlp_bias")):
        if all(hasattr(text, name) for name in flags):
            biased = copy.deepcopy(config)
            for name in flags:
                setattr(text_config(biased), name, True)
            yield biased
    if config.model_type == "llama":
        shared = set(MistralConfig().to_dict()) - {"model_type", "architectures", "sliding_window"}
        given = {name: value for name, value in config.to_dict().items() if name in shared}
        yield MistralConfig(**given, sliding_window=None)


def _expresses(config: Any, model: Model) -> bool:
    """Whether the class of a config is the model, but for biases that can be zeros."""
    try:
        # By way of its dictionary, as it will be read: only then is a sub-config validated.
        module = _built(type(config).from_dict(config.to_dict()), model)
    except (ValueError, StrictDataclassError):
        return False
    stock, pruned = shapes(module), shapes(model.module)
    added = stock.keys() - pruned.keys()
    if not all(name.endswith(".bias") for name in added):
        return False
    if pruned != {name: shape for name, shape in stock.items() if name not in added}:
        return False
    buffers, own = dict(module.named_buffers()), dict(model.module.named_buffers())
    return buffers.keys() == own.keys() and all(_close(own[name], buffer) for name, buffer in buffers.items())


def _close(own: torch.Tensor, stock: torch.Tensor) -> bool:
    """Whether two buffers hold the same numbers; those of a half-precision model were rounded."""
    return own.shape == stock.shape and torch.allclose(own.float().cpu(), stock.float(), rtol=0.01)


def _built(config: Any, model: Model) -> PreTrainedModel:
    """The class of a config, without memory but for its buffers."""
    with without_memory():
        return model.adapter.auto_class.from_config(config)
