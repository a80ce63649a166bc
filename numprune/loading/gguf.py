"""Opening GGUF files, the form local programs keep models in: dequantised, with the tokenizer inside."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from numprune.errors import InputError, LoadError, UnsupportedArchitecture, memory_ran_out, pip_install
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
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3")
"""Names of ways to cut words under which a word that is a token stays whole, whatever the merges say."""
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
        rope_factor: of linear scaling.
        head_width: numbers in a head; None where the file leaves it to the other sizes.
        biases: kinds of tensors that have a bias, such as "attn_q".
        tokens: entries of its vocabulary.
        words: llama.cpp's name for the way a byte-level tokenizer cuts a text into words.
        adds: whether a text gets a beginning and an end token.
        ends: tokens that end a text or a turn.
    """

    path: Path
    architecture: str
    types: dict[str, int]
    rope_factors: torch.Tensor | None
    rope_scaling: str | None
    rope_factor: float
    head_width: int | None
    biases: frozenset[str]
    tokens: int
    words: str
    adds: tuple[bool, bool]
    ends: tuple[int, ...]

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
        raise InputError(f"GGUF files need the gguf package ({error}); run {pip_install('gguf')}.") from error
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise LoadError(f"{name} is one part of a split file; join the parts with llama-gguf-split --merge.")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # a damaged file fails in whatever reads it
        if memory_ran_out(error):
            raise
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
    scaling, vocabulary = said(f"{architecture}.rope.scaling.type"), "tokenizer.ggml"
    if said(f"{architecture}.rope.scaling.attn_factor") not in (None, 1.0):
        scaling = "yarn"  # which alone scales the scores too
    if reader.get_field(f"{vocabulary}.tokens") is None or said(f"{vocabulary}.eos_token_id") is None:
        raise LoadError(f"{name} is a GGUF file without a tokenizer; give a whole model.")
    # llama.cpp adds the beginning to a SentencePiece text unless the file says otherwise.
    begins = said(f"{vocabulary}.add_bos_token")
    ends = [said(f"{vocabulary}.{role}_token_id") for role in ("eos", "eot", "eom")]
    return GgufFile(
        path=path,
        architecture=architecture,
        types=dict(types.most_common()),
        rope_factors=whole,
        rope_scaling=None if scaling == "none" else scaling,
        rope_factor=said(f"{architecture}.rope.scaling.factor") or 1.0,
        head_width=said(f"{architecture}.attention.key_length"),
        biases=frozenset(
            tensor.name.split(".")[2] for tensor in reader.tensors if re.fullmatch(r"blk\.\d+\.\w+\.bias", tensor.name)
        ),
        tokens=len(reader.get_field(f"{vocabulary}.tokens").data),
        words=said(f"{vocabulary}.pre") or "default",
        adds=(
            said(f"{vocabulary}.model") == "llama" if begins is None else bool(begins),
            bool(said(f"{vocabulary}.add_eos_token")),
        ),
        ends=tuple(dict.fromkeys(int(token) for token in ends if token is not None)),
    )


def gguf_config(file: GgufFile, name: str) -> Any:
    """The config a GGUF file means.

    Raises:
        UnsupportedArchitecture: its rotary embedding is one that the config cannot say.
    """
    config = AutoConfig.from_pretrained(file.path.parent, gguf_file=file.path.name)
    vars(config).pop("_model_name_or_path", None)
    if hasattr(config, "rms_norm_eps"):
        # The file holds it in single precision.
        config.rms_norm_eps = float(str(np.float32(config.rms_norm_eps)))
    if file.head_width is not None and hasattr(config, "head_dim"):
        config.head_dim = file.head_width
    if config.model_type == "llama":
        config.attention_bias = bool(file.biases & {"attn_q", "attn_k", "attn_v", "attn_output"})
        config.mlp_bias = bool(file.biases & {"ffn_gate", "ffn_up", "ffn_down"})
    rope = config.rope_parameters
    if file.rope_scaling == "linear" and file.rope_factors is None:
        config.rope_parameters = {**rope, "rope_type": "linear", "factor": file.rope_factor}
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


@torch.no_grad()
def load_gguf(
    file: GgufFile, config: Any, adapter: Adapter, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The module, dequantised, and what transformers says of the loading."""
    from transformers.utils.quantization_config import GgufConfig  # not in every version that can be installed

    module, info = adapter.auto_class.from_pretrained(
        file.path.parent,
        gguf_file=file.path.name,
        config=config,
        quantization_config=GgufConfig(dequantize=True),
        dtype=dtype,
        output_loading_info=True,
    )
    # Llama's class has all biases of a module or none; those that the file lacks are zeros.
    added = {key for key in info["missing_keys"] if key.endswith(".bias") and file.biases}
    for key in added:
        module.get_parameter(key).zero_()
    info["missing_keys"] = set(info["missing_keys"]) - added
    lost = sorted(key for key in info["unexpected_keys"] if "rope" not in key)
    if lost:
        raise LoadError(
            f"{len(lost)} tensors of {file.path.name} are none of a {type(module).__name__} (such as {lost[0]}), so it"
            " would not compute what the file does; give the model in transformers' format."
        )
    module.generation_config.eos_token_id = file.ends[0] if len(file.ends) == 1 else list(file.ends)
    return module, info


def gguf_tokenizer(file: GgufFile) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer in a GGUF file, with its chat template, and notes.

    transformers builds it from the vocabulary and the merges; what else llama.cpp's names mean is set here.
    """
    made = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name)
    spec = json.loads(made.backend_tokenizer.to_str())
    # The class it was built with adds a token of its own.
    spec["added_tokens"] = [entry for entry in spec["added_tokens"] if entry["id"] < file.tokens]
    notes = []
    if not spec["model"].get("byte_fallback"):
        spec["model"]["ignore_merges"] = file.words in _WHOLE_WORDS
        if file.words == "smollm":
            steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            spec["pre_tokenizer"] = json.loads(pre_tokenizers.Sequence(steps).__getstate__())
        elif file.words not in ("default", "gpt-2", *_known_words()):
            notes.append(
                f"How {file.path.name} cuts a text into words ('{file.words}') is not known here; GPT-2's rule was"
                " taken, so some texts may give other tokens."
            )
    roles = {role: getattr(made, f"{role}_token") for role in ("bos", "eos", "unk", "pad")}
    begin, end = (
        roles[role] if adds and roles[role] else None for role, adds in zip(("bos", "eos"), file.adds, strict=True)
    )
    frame = [part for part in (begin, "$A", end) if part is not None]
    special = [(token, made.convert_tokens_to_ids(token)) for token in (begin, end) if token is not None]
    backend = Tokenizer.from_str(json.dumps({**spec, "post_processor": None}))
    if special:
        backend.post_processor = TemplateProcessing(single=" ".join(frame), special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{role}_token": token for role, token in roles.items() if token is not None}
    )
    tokenizer.chat_template = made.chat_template
    return tokenizer, notes


def _known_words() -> Iterable[str]:
    """The ways to cut a text into words that transformers sets by their names in GGUF files."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # versions before 5.23 set none
        return ()
    return GGUF_PRE_TOKENIZER_SPLITS
