"""LlamaGen's own .pt: the published names and layout, for its own code and for everything that reads its checkpoints.

That code has one size for all layers and gets it from numbers that belong to dense models: a head has dim / n_head
channels, whatever n_head is, and the output projection is dim x dim. MLP channels that were pruned alike everywhere fit
it (`ffn_dim_multiplier`); heads that were removed are written as zeros, which compute nothing and take as much memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from numprune.errors import CancelEvent, Progress, check_cancelled
from numprune.llamagen import LlamaGen, LlamaGenConfig
from numprune.llamagen.published import (
    CAPTION_PROJECTION,
    LAYER_NAMES,
    NORM_EPS,
    NULL_CAPTION,
    PIXELS_PER_CODE,
    ROPE_THETA,
)
from numprune.models.model import Model


def refusal(model: Model) -> str | None:
    """Why LlamaGen's code could not open the model; None when it can."""
    if model.adapter.reads_text:
        return f"is a {model.architecture}, not a LlamaGen decoder"
    if (model.config.rms_norm_eps, float(model.config.rope_parameters["rope_theta"])) != (NORM_EPS, ROPE_THETA):
        return f"has another norm epsilon or rotary base than LlamaGen's {NORM_EPS} and {ROPE_THETA:.0f}"
    for kind, what in (("attention", "heads"), ("mlp", "MLP channels")):
        counts = {units for key, units in model.units().items() if key.kind == kind}
        if len(counts) > 1:
            return f"has {min(counts)} to {max(counts)} {what} a layer and LlamaGen's code one number for all layers"
        if counts == {0}:
            return f"has no {what} left, which LlamaGen's code does not provide for"
    if any(name.endswith("_proj.bias") for name, _ in model.module.named_parameters()):
        return "was given biases by its compensation, which LlamaGen's code does not have"
    return None


def write(model: LlamaGen, path: Path, *, progress: Progress | None, cancel: CancelEvent | None) -> list[str]:
    """Write the decoder under LlamaGen's names, on the CPU in the model's dtype, under "model" as published."""
    state = published_state(model)
    check_cancelled(cancel)
    with path.open("wb") as file:
        torch.save({"model": state}, file)
    notes = ["The image tokenizer is not in the file; pruning does not change it."]
    if model.config.caption_size is not None:
        notes.append("Captions are not in the file; it reads any.")
    heads = model.units()[(0, "attention")]
    groups = model.config.num_key_value_heads
    if heads < groups:
        zeros = sum(value.numel() for value in state.values()) - _own_parameters(model)
        notes.append(
            f"{groups - heads} of {groups} KV heads a layer are zeros, {zeros:,} parameters in all, since LlamaGen's"
            " code derives the width of a head from their number; a folder of numprune leaves them out."
        )
    return notes


def published_state(model: LlamaGen) -> dict[str, torch.Tensor]:
    """The decoder's tensors under LlamaGen's names; those of removed heads are zero."""
    config, weights = model.config, model.module.state_dict()
    hidden, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
    half = config.head_dim // 2
    # The two halves of a head become interleaved pairs.
    order = torch.arange(config.head_dim).reshape(2, half).T.reshape(-1)

    def take(name: str) -> torch.Tensor:
        return weights[f"{name}.weight"].to("cpu", copy=True)

    def pairs(rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(0, (-1, config.head_dim))[:, order].flatten(0, 1)

    def rows_to(rows: torch.Tensor, count: int) -> torch.Tensor:
        return torch.cat([rows, rows.new_zeros(count - len(rows), rows.shape[1])])

    table = take("model.embed_tokens")
    state = {"tok_embeddings.weight": table[: config.codes].clone(), "norm.weight": take("model.norm")}
    state["output.weight"] = take("lm_head")
    if config.caption_size is None:
        state["cls_embedding.embedding_table.weight"] = table[config.codes :].clone()
    else:
        state[NULL_CAPTION] = weights["caption_projection.null"].to("cpu", copy=True)
        for linear in ("fc1", "fc2"):
            state[f"{CAPTION_PROJECTION}.{linear}.weight"] = take(f"caption_projection.{linear}")
    for layer in range(model.layers):
        source, target = f"model.layers.{layer}", f"layers.{layer}"
        q, k, v = (take(f"{source}.self_attn.{part}_proj") for part in "qkv")
        parts = [rows_to(pairs(q), hidden), rows_to(pairs(k), keys), rows_to(v, keys)]
        state[f"{target}.attention.wqkv.weight"] = torch.cat(parts)
        for published, name in LAYER_NAMES.items():
            state[f"{target}.{published}.weight"] = take(f"{source}.{name}")
        # Columns of removed heads.
        output = f"{target}.attention.wo.weight"
        state[output] = rows_to(state[output].T, hidden).T.contiguous()
    return state


def _own_parameters(model: LlamaGen) -> int:
    """The decoder's parameters without the embedded captions, which LlamaGen's files do not hold."""
    captions = 0
    if model.config.caption_size is not None:
        captions = (model.config.vocab_size - model.config.codes) * model.config.hidden_size
    return model.parameters - captions


def snippet(model: LlamaGen, path: Path) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in model_args(model.config, model.units()).items())
    return (
        "import torch\n"
        "from autoregressive.models.gpt import ModelArgs, Transformer  # LlamaGen's own code\n\n"
        f"model = Transformer(ModelArgs({arguments})).eval()\n"
        f'model.load_state_dict(torch.load("{path}", weights_only=True)["model"])\n\n'
        f'# numprune.load_checkpoint("{path}", n_head={model.config.num_attention_heads},'
        f" image_size={model.grid * PIXELS_PER_CODE})"
    )


def model_args(config: LlamaGenConfig, units: dict[Any, int]) -> dict[str, Any]:
    """The arguments with which LlamaGen's code makes a decoder of these sizes.

    Its MLP has int(ffn_dim_multiplier * int(8 dim / 3)) channels, rounded up to a multiple of `multiple_of`.
    """
    channels, stock = units[(0, "mlp")], int(8 * config.hidden_size / 3)
    text = config.caption_size is not None
    return {
        "model_type": "t2i" if text else "c2i",
        "dim": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_kv_head": config.num_key_value_heads,
        "multiple_of": 1,
        # Half a channel more, so that cutting off the fraction never loses one.
        "ffn_dim_multiplier": (channels + 0.5) / stock,
        "vocab_size": config.codes,
        "block_size": config.grid**2,
        "cls_token_num": config.condition_tokens,
        **({"caption_dim": config.caption_size} if text else {"num_classes": config.classes}),
    }
