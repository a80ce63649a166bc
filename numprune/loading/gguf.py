"""Opening GGUF files, the form local programs keep models in: dequantised, with the tokenizer inside."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils.quantization_config import GgufConfig

from numprune.errors import InputError, LoadError, UnsupportedArchitecture
from numprune.models.adapter import Adapter, supported_model_types

_KNOWN = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "stablelm": "stablelm",
}
"""llama.cpp's architectures that transformers reads and an adapter serves, with the model types they become."""
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class GgufFile:
    """What a file says of itself.

    Attributes:
        path: the file.
        architecture: llama.cpp's name for the graph.
        types: how many of the matrices are stored in every type, the commonest first.
        rope_factors: what the frequencies of the rotary embedding are divided by, (head_dim / 2,); None for 1.
        rope_scaling: the type of scaling its keys name; None for none.
    """

    path: Path
    architecture: str
    types: dict[str, int]
    rope_factors: torch.Tensor | None
    rope_scaling: str | None

    @property
    def dtype(self) -> torch.dtype:
        """The type the weights are written in again: their own, or float16 for quantised ones."""
        return _PLAIN.get(next(iter(self.types), "F16"), torch.float16)

    @property
    def note(self) -> str:
        """What the weights were before."""
        told = ", ".join(f"{count} matrices of {name}" for name, count in self.types.items())
        if set(self.types) <= set(_PLAIN):
            return f"{self.path.name} is a GGUF file of {told}."
        return f"{self.path.name} is a GGUF file of {told}; they were dequantised, and what they lost stays lost."


def read_gguf(path: Path, name: str) -> GgufFile:
    """What a GGUF file holds, without its weights.

    Raises:
        InputError: the gguf package is missing.
        UnsupportedArchitecture: it is none of the architectures that can be opened.
        LoadError: it is damaged, a part of a split file, or no language model.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError(f"GGUF files need the gguf package ({error}); run pip install 'numprune[gguf]'.") from error
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise LoadError(f"{name} is one part of a split file; join the parts with llama-gguf-split --merge.")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # a damaged file fails in whatever reads it
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise LoadError(f"{name} is a damaged GGUF file or one cut short ({reason}); download it again.") from error

    def said(key: str) -> Any:
        entry = reader.get_field(key)
        return None if entry is None else entry.contents()

    kind, architecture = said("general.type") or "model", said("general.architecture") or "unknown"
    if kind != "model" or architecture == "clip":
        raise LoadError(f"{name} is a GGUF file of type {kind} ({architecture}), not a language model.")
    if any(isinstance(said(f"{architecture}.{key}"), list) for key in ("attention.head_count", "feed_forward_length")):
        raise UnsupportedArchitecture(
            f"{name} has layers of different sizes (GGUF architecture '{architecture}'), which cannot be opened from"
            " GGUF; give the folder it was exported from."
        )
    if said(f"{architecture}.expert_count"):
        raise UnsupportedArchitecture(
            f"{name} is not supported: it is a mixture of experts (GGUF architecture '{architecture}'); choose a dense"
            " decoder-only model."
        )
    if _KNOWN.get(architecture) not in supported_model_types():
        known = ", ".join(_KNOWN)
        raise UnsupportedArchitecture(
            f"{name} is of the GGUF architecture '{architecture}', which cannot be opened; those that can are {known}."
        )
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)
    factors = [tensor for tensor in reader.tensors if tensor.name.startswith("rope_f")]
    if any("_long" in tensor.name or "_short" in tensor.name for tensor in factors):
        raise UnsupportedArchitecture(
            f"{name} has a rotary embedding of type longrope, which cannot be opened from GGUF; give the model in"
            " transformers' format."
        )
    whole = next((torch.from_numpy(tensor.data.copy()).float() for tensor in factors), None)
    scaling = said(f"{architecture}.rope.scaling.type")
    return GgufFile(path, architecture, dict(types.most_common()), whole, None if scaling == "none" else scaling)


def gguf_config(file: GgufFile, name: str) -> Any:
    """The config a GGUF file means.

    Raises:
        UnsupportedArchitecture: its rotary embedding is one that the config cannot say.
    """
    config = AutoConfig.from_pretrained(file.path.parent, gguf_file=file.path.name)
    if getattr(config, "head_dim", None) is None and hasattr(config, "head_dim"):
        config.head_dim = config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    if file.rope_scaling not in (None, "linear") and rope.get("rope_type", "default") == "default":
        raise UnsupportedArchitecture(
            f"{name} has a rotary embedding of type {file.rope_scaling}, which cannot be opened from GGUF; give the"
            " model in transformers' format."
        )
    if file.rope_factors is not None:
        config.rope_parameters = _scaled_rope(rope, file.rope_factors, config, name)
    return config


def _scaled_rope(rope: dict[str, Any], factors: torch.Tensor, config: Any, name: str) -> dict[str, Any]:
    """The parameters under which the frequencies are divided by `factors`: linear scaling, or that of Llama 3."""
    most = float(factors.max())
    if torch.allclose(factors, factors[0].expand_as(factors), rtol=1e-4):
        return {**rope, "rope_type": "linear", "factor": most} if most != 1.0 else rope
    plain = rope["rope_theta"] ** (-torch.arange(len(factors)).double() / len(factors))
    for original in (8192, *_solved(factors.double(), plain)):
        scaled = {
            **rope,
            "rope_type": "llama3",
            "factor": most,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        config.rope_parameters = scaled
        frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
        if torch.allclose(plain / frequencies.double(), factors.double(), rtol=1e-3):
            return scaled
    raise UnsupportedArchitecture(
        f"{name} scales the frequencies of its rotary embedding as neither linear scaling nor Llama 3 does, which"
        " cannot be opened from GGUF; give the model in transformers' format."
    )


def _solved(factors: torch.Tensor, plain: torch.Tensor) -> list[int]:
    """The original length under which Llama 3's scaling, from 1 to 4 turns, gives a factor between its ends."""
    between = (factors > factors.min() * 1.001) & (factors < factors.max() * 0.999)
    if not bool(between.any()):
        return [2**power for power in range(4, 18)]
    most, factor = factors.max(), factors[between][0]
    smooth = (1 / factor - 1 / most) / (1 - 1 / most)
    turns = smooth * 3 + 1
    return [round(float(turns * 2 * torch.pi / plain[between][0]))]


def load_gguf(
    file: GgufFile, config: Any, adapter: Adapter, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The module, dequantised, and what transformers says of the loading."""
    return adapter.auto_class.from_pretrained(
        file.path.parent,
        gguf_file=file.path.name,
        config=config,
        quantization_config=GgufConfig(dequantize=True),
        dtype=dtype,
        output_loading_info=True,
    )


def gguf_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file, with its chat template."""
    return AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
