"""What tells a model from every other one: the numbers its predictions come from."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

IRRELEVANT = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "per_layer_config",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "type",
    "use_cache",
)
"""Entries of a config that change no logit; `per_layer_config` repeats the shapes of tensors, and "type" is an earlier
name of "rope_type"."""
IRRELEVANT_ENDINGS = ("_token_id", "_dropout", "_range", "_std", "dropout", "layerdrop", "_pdrop")
"""What starts or ends a text, and what only training reads."""
CHUNK = 2**24
"""Values that are hashed at once."""


_HASHED: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()
"""What `_marks` said of modules on a GPU when they were hashed, and their hash."""


def fingerprint(module: nn.Module) -> str:
    """Short hash of a module's config and of all its parameters, see `numprune.Model.fingerprint`.

    The CPU hashes; 7 billion parameters take it 18 s, in which a GPU prunes them. So a module on a GPU is hashed again
    only when a tensor was written to or exchanged, or the sum of its bits is another.
    """
    config = json.dumps(relevant(module.config.to_dict()), sort_keys=True, default=str)
    if all(parameter.device.type == "cpu" for parameter in module.parameters()):
        return _hash(config, module)
    marks = config, _marks(module)
    known, found = _HASHED.get(module, (None, ""))
    if known != marks:
        found = _hash(config, module)
        _HASHED[module] = marks, found
    return found


def _marks(module: nn.Module) -> list[tuple[Any, ...]]:
    """Of every parameter its name, place, version and the sum of its bits, which is taken where it lies."""
    parameters = sorted(module.named_parameters())
    sums = [_sum_of_bits(parameter.detach()) for _, parameter in parameters]
    return [
        (name, parameter.data_ptr(), tuple(parameter.shape), parameter._version, int(total))
        for (name, parameter), total in zip(parameters, sums, strict=True)
    ]


def _sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(whole).sum(dtype=torch.int64)


def _hash(config: str, module: nn.Module) -> str:
    digest = hashlib.sha256(config.encode())
    for name, parameter in sorted(module.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        for chunk in parameter.detach().reshape(-1).split(CHUNK):
            digest.update(chunk.to("cpu", torch.bfloat16).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def relevant(config: dict[str, Any]) -> dict[str, Any]:
    """The entries of a config that may change logits; what is None, False or empty is as good as not there."""
    kept = {}
    for key, value in config.items():
        if key in IRRELEVANT or key.endswith(IRRELEVANT_ENDINGS) or key.startswith("_"):
            continue
        value = _plain(value)
        if value is not None and value is not False and value not in ([], {}, ""):
            kept[str(key)] = value
    rope = kept.get("rope_parameters", {})
    if kept.get("partial_rotary_factor", 1) == rope.get("partial_rotary_factor", 1):
        kept.pop("partial_rotary_factor", None)  # where earlier versions of transformers look for it
    if {"hidden_size", "num_attention_heads"} <= kept.keys():
        # What configs that do not say it mean, and exports of layers with sizes of their own spell out.
        kept.setdefault("head_dim", kept["hidden_size"] // kept["num_attention_heads"])
    return kept


def _plain(value: Any) -> Any:
    """The value as every writer of JSON would have it: lists for tuples, whole numbers for 1.0."""
    if isinstance(value, dict):
        return relevant(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
