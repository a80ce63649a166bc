"""The VQ image tokenizer that turns a decoder's codes into images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import JanusVQVAE, JanusVQVAEConfig

from numprune.errors import InputError
from numprune.llamagen.network import LlamaGenConfig, fill
from numprune.models.empty import without_memory

VQ_FOLDER = "vq"
"""The folder of the image tokenizer inside a saved folder."""


def open_vq(folder: Path, config: LlamaGenConfig) -> JanusVQVAE | None:
    """The image tokenizer a saved folder has, in float32; None when it has none."""
    folder = folder / VQ_FOLDER
    if not (folder / "config.json").is_file():
        return None
    vq_config = JanusVQVAEConfig.from_pretrained(folder)
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        state.update(load_file(file))
    vq = make_vq(vq_config, state, folder)
    check_vq(vq, config)
    return vq


def make_vq(config: JanusVQVAEConfig, weights: Mapping[str, torch.Tensor], source: Path) -> JanusVQVAE:
    """An image tokenizer of these weights, in float32 on the CPU."""
    with without_memory():
        vq = JanusVQVAE(config)
    fill(vq, {key: value.float() for key, value in weights.items()}, source)
    return vq.eval().requires_grad_(False)


def check_vq(vq: JanusVQVAE, config: LlamaGenConfig) -> None:
    """Raise InputError when an image tokenizer has other codes or another grid than the decoder."""
    codes, grid = vq.config.num_embeddings, vq.config.num_patches
    if (codes, grid) != (config.codes, config.grid):
        raise InputError(
            f"The image tokenizer has {codes} codes on a grid of {grid}, the decoder {config.codes} on"
            f" {config.grid}; use the tokenizer the decoder was trained with."
        )
