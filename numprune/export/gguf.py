"""GGUF, the file that llama.cpp and everything that embeds it open.

The file holds the keys that describe the model, the tokenizer and the tensors; `gguf_layers` says which architecture of
llama.cpp a model is written as.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from contextlib import closing
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from numprune.errors import CancelEvent, InputError, NumpruneError, Progress, check_cancelled, pip_install
from numprune.export.gguf_layers import (
    FileLayer,
    FileTensor,
    architecture,
    file_layers,
    head_shape,
    is_even,
    layers_refusal,
    outer_tensors,
)
from numprune.export.gguf_vocab import Vocabulary, read_vocabulary, vocabulary_refusal
from numprune.models.model import Model

QUICK_ROWS = 32
"""Columns of a matrix that llama.cpp's kernels take at once. On two cores prompts of a SmolLM2 pruned by 20 % were read
at .56 (.55 to .62) times the dense model's speed in float16 without rounding and 1.35 (1.23 to 1.66) times with it."""


def refusal(model: Model) -> str | None:
    """Why GGUF cannot carry a model, as half a sentence after its name; None when it can."""
    return layers_refusal(model) or vocabulary_refusal(model.tokenizer)


def write(
    model: Model,
    target: Path,
    *,
    dtype: str,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> list[str]:
    """Write `model` to `target`, one tensor in memory at a time.

    Args:
        dtype: of the matrices, "f16", "f32", "bf16" or "q8_0"; norms and biases are float32 in all of them. Q8_0
            keeps 32 consecutive weights of a row with one scale, so other row lengths stay float16.

    Returns:
        Notes, in sentences.

    Raises:
        InputError: the gguf package is missing.
        NumpruneError: a weight does not fit float16.
        Cancelled: `cancel` was set.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError(f"GGUF needs the gguf package ({error}); run {pip_install('gguf')}.") from error
    layers = file_layers(model)
    vocabulary = read_vocabulary(model.tokenizer, model.module.get_input_embeddings().weight.shape[0])
    tensors = [*outer_tensors(model), *(tensor for layer in layers for tensor in layer.tensors)]
    types = {tensor.name: _type(gguf, tensor, dtype) for tensor in tensors}
    with closing(gguf.GGUFWriter(target, architecture(model))) as writer:
        _describe(gguf, writer, model, vocabulary, tensors, dtype)
        _shape(writer, model, layers)
        vocabulary.write(writer)
        for tensor in tensors:
            shape, stored = tensor.shape, types[tensor.name]
            block, size = gguf.GGML_QUANT_SIZES[stored]
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), shape.numel() // block * size, stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, tensor in enumerate(tensors, 1):
            check_cancelled(cancel)
            writer.write_tensor_data(_stored(gguf, tensor, types[tensor.name]))
            if progress is not None:
                progress(done, len(tensors), f"writing {tensor.name}")
    return [*_notes(model, layers, dtype), *_width_notes(model.config, tensors, dtype), *vocabulary.notes]


def _type(gguf: Any, tensor: FileTensor, dtype: str) -> Any:
    """The type a tensor is stored in."""
    types = gguf.GGMLQuantizationType
    if len(tensor.shape) == 1:
        return types.F32
    if dtype == "q8_0" and not _multiple(tensor, gguf.GGML_QUANT_SIZES[types.Q8_0][0]):
        return types.F16
    return types[dtype.upper()]


def _multiple(tensor: FileTensor, block: int) -> bool:
    return tensor.shape[-1] % block == 0


def _stored(gguf: Any, tensor: FileTensor, stored: Any) -> np.ndarray:
    values = tensor.read().numpy()
    if stored == gguf.GGMLQuantizationType.F16 and np.abs(values).max() > np.finfo(np.float16).max:
        raise NumpruneError(f"{tensor.name} has weights beyond float16's {np.finfo(np.float16).max:g}; use dtype bf16.")
    return gguf.quants.quantize(values, stored)


def _describe(
    gguf: Any, writer: Any, model: Model, vocabulary: Vocabulary, tensors: list[FileTensor], dtype: str
) -> None:
    """The general keys: what this is, and what it was made from."""
    parameters = sum(tensor.shape.numel() for tensor in tensors if tensor.name != "rope_freqs.weight")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(_name(model, vocabulary))
    writer.add_size_label(gguf.size_label(parameters, parameters, 0, 0))
    writer.add_file_type(_file_types(gguf)[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if model.report is not None and model.recipe is not None:
        writer.add_description(
            f"Pruned with numprune: {model.report.ratio_reached:.1%} of the prunable parameters removed,"
            f" scores {model.recipe.scorer}, compensation {model.report.compensation}."
        )
        writer.add_tags(["pruned", "numprune", "text-generation"])
        if model.recipe.model is not None:
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, Path(model.recipe.model).name)


def _name(model: Model, vocabulary: Vocabulary) -> str:
    """The model's name, without what makes llama.cpp refuse the file."""
    name = Path(model.name).name
    if not {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= set(vocabulary.tokens):
        # By this name it looks for these tokens in the vocabulary, and fails when one is missing.
        name = re.sub("phi-?3", "phi 3", name, flags=re.IGNORECASE)
    return name


def _file_types(gguf: Any) -> Mapping[str, Any]:
    types = gguf.LlamaFileType
    return {
        "f16": types.MOSTLY_F16,
        "f32": types.ALL_F32,
        "bf16": types.MOSTLY_BF16,
        "q8_0": types.MOSTLY_Q8_0,
    }


def _shape(writer: Any, model: Model, layers: list[FileLayer]) -> None:
    """The architecture's keys."""
    config, rope = model.config, model.config.rope_parameters
    width, _ = head_shape(config)
    counts = [(layer.heads, layer.kv_heads, layer.channels) for layer in layers]
    heads, kv_heads, channels = counts[0] if is_even(model) else zip(*counts, strict=True)
    writer.add_block_count(len(layers))
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(model.module.get_input_embeddings().weight.shape[0])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_feed_forward_length(channels)
    # llama.cpp would divide the hidden size by the heads of the first layer, which pruning took some of.
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    scaling = model.module.model.rotary_emb.attention_scaling
    if scaling != 1.0:
        writer.add_rope_scaling_attn_factors(scaling)


def _context(config: Any) -> int:
    """Tokens up to which llama.cpp, which has no window in these graphs, computes what the model does."""
    window = _window(config)
    return config.max_position_embeddings if window is None else min(window, config.max_position_embeddings)


def _window(config: Any) -> int | None:
    """Tokens that a layer with a sliding window sees; None when all layers see everything."""
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    return getattr(config, "sliding_window", None) if slides else None


def _notes(model: Model, layers: list[FileLayer], dtype: str) -> list[str]:
    notes = []
    if not is_even(model):
        name = architecture(model)
        notes.append(f"Layers differ in shape, so the architecture is '{name}', the same graph with counts per layer.")
    odd = sum(layer.channels % QUICK_ROWS != 0 for layer in layers)
    # A file in blocks of 8 bits says the same of its matrices.
    if odd and dtype != "q8_0" and model.config.intermediate_size % QUICK_ROWS == 0:
        notes.append(
            f"{odd} of {len(layers)} layers keep a number of channels that is no multiple of {QUICK_ROWS}, at which"
            f" llama.cpp can read prompts slower than the dense model's; prune with --round-channels {QUICK_ROWS} where"
            " prompts are long."
        )
    padded = [str(key) for layer in layers for key in layer.padded]
    if padded:
        notes.append(f"Nothing is left of {', '.join(padded)}; one unit of zeros stands there in the file.")
    window = _window(model.config)
    if window is not None and window < model.config.max_position_embeddings:
        notes.append(f"The context length is {window}, the sliding window, within which nothing slides.")
    return notes


def _width_notes(config: Any, tensors: list[FileTensor], dtype: str) -> list[str]:
    """Which matrices a quantisation leaves wider than asked: those whose rows are no multiple of its block."""
    block, loss = (32, "stay float16") if dtype == "q8_0" else (256, "become wider than asked in llama-quantize")
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    odd = [tensor.name.removesuffix(".weight") for tensor in matrices if not _multiple(tensor, block)]
    if not odd:
        return []
    width, group = head_shape(config)
    heads = block // gcd(block, width * group)
    remedies = [
        f"{option} {multiple}"
        for part, option, multiple, units in (
            ("ffn_down", "--round-channels", block, config.intermediate_size),
            ("attn_output", "--round-heads", heads, config.num_key_value_heads),
        )
        if multiple <= units and any(name.endswith(part) for name in odd)
    ]
    names = ", ".join(odd[:4]) + (", ..." if len(odd) > 4 else "")
    return [
        f"Rows of {len(odd)} of {len(matrices)} matrices ({names}) are no multiple of {block} and {loss}"
        + (f"; prune with {' '.join(remedies)} for rows that are." if remedies else ".")
    ]


def snippet(model: Model, path: Path) -> str:
    """Python and commands that run what lies at `path`, and the command that quantises it further."""
    file, smaller = shlex.quote(str(path)), shlex.quote(str(path.with_name(f"{path.stem}-Q4_K_M.gguf")))
    return f"""from llama_cpp import Llama  # pip install llama-cpp-python

model = Llama({str(path)!r}, n_ctx={min(_context(model.config), 4096)})
print(model("Once upon a time", max_tokens=64)["choices"][0]["text"])

# The programs of llama.cpp itself: talk, write, serve (http://127.0.0.1:8080), time prompts and writing; the last makes
# 4 bits of f16, bf16 or f32:
#   llama-cli -m {file}
#   llama-completion -m {file} -no-cnv -p "Once upon a time" -n 64
#   llama-server -m {file} -c {min(_context(model.config), 4096)}
#   llama-bench -m {file} -p 512 -n 128
#   llama-quantize {file} {smaller} Q4_K_M
"""
