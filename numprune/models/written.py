"""The files of a model's folder, as transformers 4 and 5 and the engines that read its folders expect them.

transformers 5 names some things as no earlier version does: the rotary embedding's parameters, the class of a
tokenizer, the list of its special tokens. What is written here says them in both ways where both can stand in one file.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from numprune.errors import NumpruneError
from numprune.files import to_json
from numprune.linalg import all_finite
from numprune.models.placement import dtype_name

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "processor_config.json",
    "preprocessor_config.json",
)
_ROPE = ("rope_theta", "partial_rotary_factor")
_OF_THIS_MACHINE = ("_name_or_path", "auto_map", "is_local", "local_files_only", "name_or_path")
"""Entries of a tokenizer's settings that say where it was read from, or name code that is not in the folder."""


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder that make its tokenizer, by their names there."""
    found = sorted(file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in found}


def made_tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """The files transformers writes for a tokenizer that came from none."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return tokenizer_files(Path(folder))


def write_tokenizer(tokenizer: PreTrainedTokenizerBase | None, files: Mapping[str, bytes], folder: Path) -> None:
    """Write a tokenizer: the files it was read from, byte for byte but for settings that only held there."""
    if tokenizer is None:
        return
    for name, data in (files or made_tokenizer_files(tokenizer)).items():
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(_settings(data) if name == "tokenizer_config.json" else data)


def _settings(data: bytes) -> bytes:
    """A tokenizer_config.json without what only held where it was read, in words transformers 4 knows too."""
    given = json.loads(data)
    settings = {name: value for name, value in given.items() if name not in _OF_THIS_MACHINE}
    if settings.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerBase"):
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    # A list of tokens without names: transformers 4 reads a dictionary under this name.
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return data if settings == given else to_json(settings).encode()


def write_module(module: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write weights, config and generation config of a module.

    Tensors keep the module's own names: transformers would undo its renamings (GPT-NeoX's lm_head), which only its own
    loader of whole checkpoints applies again.

    Args:
        dtype: of the tensors in the file.

    Raises:
        NumpruneError: a weight is beyond the range of `dtype`; the tensor is named.
    """
    state = None if module.dtype == dtype else _converted(module, dtype)
    module.save_pretrained(folder, state_dict=state, save_original_format=False)
    tidy_config(folder, dtype)


def _converted(module: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a module in another data type; those it shares are shared here too."""
    made: dict[tuple[int, torch.Size], torch.Tensor] = {}
    state = {}
    for name, tensor in module.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in made:
            made[place] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        state[name] = made[place]
        if not all_finite(state[name]):
            raise NumpruneError(
                f"Tensor {name} has weights beyond {dtype_name(dtype)}; give --dtype float32 or bfloat16."
            )
    return state


def tidy_config(folder: Path, dtype: torch.dtype) -> None:
    """Make the config.json of a folder one that transformers 4 and serving engines read, without foreign code."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    name = dtype_name(dtype)
    own = {
        auto: target
        for auto, target in config.pop("auto_map", {}).items()
        if "--" not in str(target) and (folder / f"{str(target).partition('.')[0]}.py").is_file()
    }
    if own:
        config["auto_map"] = own
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            part.pop("_name_or_path", None)
            _say_rope(part)
            if "dtype" in part:
                part["dtype"] = name
    config["dtype"] = config["torch_dtype"] = name
    file.write_text(to_json(config), encoding="utf-8")


def _say_rope(config: dict[str, Any]) -> None:
    """Add the names the rotary embedding's parameters had before transformers 5."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or not rope:
        return
    if isinstance(rope.get("full_attention"), dict):  # one embedding for each kind of layer
        local = rope.get("sliding_attention") or {}
        rope = rope["full_attention"]
        if "rope_theta" in local:
            config["rope_local_base_freq"] = local["rope_theta"]
    if "rope_theta" not in rope:
        return
    theta, share = ("rotary_emb_base", "rotary_pct") if config.get("model_type") == "gpt_neox" else _ROPE
    config[theta] = rope["rope_theta"]
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        config[share] = rope["partial_rotary_factor"]
    kind = rope.get("rope_type", "default")
    scaling = {key: value for key, value in rope.items() if key not in _ROPE}
    if kind == "longrope":
        # Where transformers 4 looks for it; it wants these three entries of the scaling and no other.
        config.setdefault("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
        scaling = {"type": kind, **{key: rope[key] for key in ("short_factor", "long_factor") if key in rope}}
    config["rope_scaling"] = None if kind == "default" else scaling


def saveable(settings: GenerationConfig) -> tuple[GenerationConfig, list[str]]:
    """Settings of generation that transformers agrees to write, and a note when they were not."""
    try:
        settings.validate(strict=True)
        return settings, []
    except ValueError:
        pass
    # The common fault: numbers for sampling beside a flag, or its default, that says not to sample.
    repaired = GenerationConfig.from_dict({**settings.to_dict(), "do_sample": True})
    try:
        repaired.validate(strict=True)
        what = "do_sample was set to true, as its other entries mean"
    except ValueError:
        kept = ("bos_token_id", "eos_token_id", "pad_token_id")
        repaired = GenerationConfig(**{name: getattr(settings, name) for name in kept})
        what = "only its special tokens were kept"
    return repaired, [f"The generation config contradicts itself, which transformers refuses to write; {what}."]
