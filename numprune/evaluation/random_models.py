"""Models with random weights in a stated shape, and tokens and statistics for them: what costs are measured on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from numprune.calibration import CalibrationStats, calibrate
from numprune.errors import InputError
from numprune.models.adapter import adapter_for
from numprune.models.model import Model
from numprune.models.placement import resolve_device, resolve_dtype


@dataclass(frozen=True)
class Shape:
    """A random model of Llama's architecture."""

    hidden: int = 1024
    channels: int = 2816
    layers: int = 2
    heads: int = 16
    vocabulary: int = 1024


def llama_config(shape: Shape) -> LlamaConfig:
    """The config of a shape.

    Raises:
        InputError: the heads do not divide the hidden size.
    """
    if shape.hidden % shape.heads:
        raise InputError(f"hidden {shape.hidden} is not a multiple of {shape.heads} heads; change one of them.")
    return LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.channels,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        dtype=torch.bfloat16,
    )


def random_llama(shape: Shape, *, device: str = "auto", dtype: str = "auto", seed: int = 0) -> Model:
    """A model with random weights and no tokenizer."""
    config = llama_config(shape)
    target = resolve_device(device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = LlamaForCausalLM(config).to(target, resolve_dtype(dtype, config, target)).eval().requires_grad_(False)
    return Model(module=module, tokenizer=None, adapter=adapter_for(config), name="random-llama")


def random_tokens(shape: Shape, samples: int, sequence_length: int) -> torch.Tensor:
    """Token ids (samples, sequence_length)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(shape.vocabulary, (samples, sequence_length), generator=generator)


def random_statistics(model: Model, shape: Shape) -> CalibrationStats:
    """Statistics of four short sequences: enough to prune by where no weight means anything."""
    return calibrate(model, random_tokens(shape, 4, 128), samples=4, sequence_length=128)
