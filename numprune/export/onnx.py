"""A folder with one ONNX graph of the decoder, whose keys and values go in and come out, beside config and tokenizer.

Inputs are `input_ids` (batch, sequence), `attention_mask` (batch, past + sequence), `position_ids` (batch, sequence)
and `past_key_values.{layer}.key` and `.value` (batch, KV heads of the layer, past, head_dim); outputs `logits` (batch,
sequence, vocabulary) and `present.{layer}.key` and `.value`. The graph states the KV heads and head_dim of every layer,
so a loop needs nothing else; a layer that lost its attention has no keys and values.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicLayer, PreTrainedModel

from numprune.errors import (
    CancelEvent,
    InputError,
    NumpruneError,
    Progress,
    check_cancelled,
    memory_ran_out,
    pip_install,
)
from numprune.export.transformers import pruned_config
from numprune.models.model import Model, twin
from numprune.models.written import tidy_config, write_tokenizer

GRAPH = "model.onnx"
TOLERANCE = 1e-3
"""Largest difference to PyTorch's logits an export may have, as a share of the largest logit."""


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer: (batch, heads, tokens, head_dim) each."""

    layer: int
    heads: int
    head_dim: int

    def empty(self, batch: int, tokens: int = 0) -> torch.Tensor:
        return torch.zeros(batch, self.heads, tokens, self.head_dim)


class DecoderGraph(nn.Module):
    """A decoder as a function of tensors alone."""

    def __init__(self, module: PreTrainedModel, layers: int, caches: list[LayerCache]) -> None:
        super().__init__()
        self.module = module
        self.layers = layers
        self.cached = [cache.layer for cache in caches]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Logits, then keys and values of every layer that has them, like `past`."""
        # Windows are a matter of the mask: a cache that forgets would have to be told where it begins.
        cache = Cache(layers=[DynamicLayer() for _ in range(self.layers)])
        tensors = iter(past)
        before = attention_mask.shape[1] - input_ids.shape[1]
        for layer in range(self.layers):
            if layer in self.cached:
                cache.update(next(tensors), next(tensors), layer)
            else:
                placeholder = self.module.get_input_embeddings().weight.new_zeros(input_ids.shape[0], 1, before, 1)
                cache.update(placeholder, placeholder, layer)
        logits = self.module(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).logits
        present = [tensor for layer in self.cached for tensor in (cache.layers[layer].keys, cache.layers[layer].values)]
        return logits, *present


def refusal(model: Model) -> str | None:
    """Why a graph of token ids is not this model; None when it is."""
    if not model.adapter.reads_text:
        return "draws images, whose conditions and guidance a graph of token ids does not have"
    return None


def write(model: Model, folder: Path, *, progress: Progress | None, cancel: CancelEvent | None) -> list[str]:
    """Write graph, config and tokenizer, and compare the graph in ONNX Runtime with the model.

    Raises:
        InputError: a package is missing.
        NumpruneError: the graph cannot be made, or gives other logits.
    """
    runtime = _runtime()
    decoder, caches = graph_of(model), layer_caches(model)
    if progress is not None:
        progress(0, 2, "tracing the decoder")
    program = _trace(model, decoder, caches)
    check_cancelled(cancel)
    program.save(folder / GRAPH)
    del program
    config = pruned_config(model)
    vars(config).pop("auto_map", None)  # names a modelling file, which the graph makes needless
    config.save_pretrained(folder)
    tidy_config(folder, torch.float32)
    model.module.generation_config.save_pretrained(folder)
    write_tokenizer(model.tokenizer, model.tokenizer_files, folder)
    check_cancelled(cancel)
    if progress is not None:
        progress(1, 2, "comparing the graph in ONNX Runtime")
    difference = _difference(runtime, folder / GRAPH, decoder, caches)
    if not difference <= TOLERANCE:  # NaN differs too
        raise NumpruneError(
            f"The ONNX graph of {model.name} differs from the model by {difference:.1e} of its largest logit, more than"
            f" {TOLERANCE}; nothing was kept, export it in another format."
        )
    if progress is not None:
        progress(2, 2, "comparing the graph in ONNX Runtime")
    return [
        f"ONNX Runtime gave the model's logits to within {difference:.1e} of the largest, with padding and with a cache"
        " (2 x 7 random tokens, CPU, float32)."
    ]


def graph_of(model: Model) -> DecoderGraph:
    """The decoder in float32 on the CPU; the weights are the model's own where they are so already."""
    plain = model.device.type == "cpu" and model.dtype == torch.float32
    module = twin(model.module) if plain else copy.deepcopy(model.module).to("cpu", torch.float32)
    # Written out in plain products; fused attention has no operator of ONNX that older runtimes know.
    module.set_attn_implementation("eager")
    return DecoderGraph(module, model.layers, layer_caches(model)).eval()


def layer_caches(model: Model) -> list[LayerCache]:
    """The cache of every layer that has attention."""
    caches = []
    for block in model.blocks:
        if block.key.kind == "attention":
            owner, name = model.adapter.attention_owner(model.adapter.layers(model.module)[block.key.layer])
            attention = getattr(owner, name)
            width = attention.head_size if hasattr(attention, "head_size") else attention.head_dim
            caches.append(LayerCache(block.key.layer, block.units, width))
    return caches


def _runtime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"Writing ONNX needs the package {error.name}; run: {pip_install('onnx')}.") from error
    return onnxruntime


def _trace(model: Model, decoder: DecoderGraph, caches: list[LayerCache]) -> Any:
    """The ONNX program of a decoder, every length of its inputs free."""
    names = [f"{cache.layer}.{part}" for cache in caches for part in ("key", "value")]
    # Lengths that differ from each other and from 1, which the tracer would take for constants.
    ids, mask, positions = _tokens(model.config, batch=2, tokens=3, past=4)
    past = [cache.empty(2, 4) for cache in caches for _ in range(2)]
    shapes = ({0: "batch", 1: "sequence"}, {0: "batch", 1: "total"}, {0: "batch", 1: "sequence"})
    try:
        with _quiet(), torch.no_grad():
            return torch.onnx.export(
                decoder,
                (ids, mask, positions, past),
                dynamo=True,
                verbose=False,
                input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{n}" for n in names)],
                output_names=["logits", *(f"present.{name}" for name in names)],
                dynamic_shapes=(*shapes, [{0: "batch", 2: "past"} for _ in past]),
            )
    except Exception as error:  # the tracer has a dozen error types, with whole graphs in their messages
        if memory_ran_out(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NumpruneError(
            f"PyTorch could not trace {model.name} into an ONNX graph ({type(error).__name__}: {reason[:120]});"
            " export it in another format."
        ) from error


def _tokens(config: Any, *, batch: int, tokens: int, past: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random ids (batch, tokens), a mask (batch, past + tokens) of ones, and positions."""
    vocabulary = config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones(batch, past + tokens, dtype=torch.long), torch.arange(past, past + tokens).repeat(batch, 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own code from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def _difference(runtime: Any, path: Path, decoder: DecoderGraph, caches: list[LayerCache]) -> float:
    """Largest difference of logits to the traced model's, as a share of the largest: a padded prompt, then a token."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    ids, mask, _ = _tokens(decoder.module.config, batch=2, tokens=7, past=0)
    mask[0, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    expected = decoder.module(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    past = [cache.empty(2) for cache in caches for _ in range(2)]
    logits = []
    for begin, end in ((0, 6), (6, 7)):
        feed = (ids[:, begin:end], mask[:, :end], positions[:, begin:end], *past)
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, feed, strict=True)})
        step_logits, *past = map(torch.from_numpy, outputs)
        logits.append(step_logits)
    seen = mask.bool()
    difference = (torch.cat(logits, dim=1) - expected)[seen].abs().max()
    return float(difference / expected[seen].abs().max())


def snippet(model: Model, path: Path) -> str:
    return f'''\
import numpy as np
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{path}")
session = onnxruntime.InferenceSession("{path}/{GRAPH}")
_, _, _, *caches = session.get_inputs()
past = {{each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32) for each in caches}}
ids = tokenizer("Once upon a time", return_tensors="np").input_ids
step = ids
for _ in range(50):
    total = ids.shape[1]
    positions = np.arange(total - step.shape[1], total)[None]
    mask = np.ones((1, total), np.int64)
    feed = {{"input_ids": step, "attention_mask": mask, "position_ids": positions, **past}}
    logits, *present = session.run(None, feed)
    past = dict(zip(past, present))
    step = logits[:, -1:].argmax(-1)
    if step.item() == tokenizer.eos_token_id:
        break
    ids = np.concatenate([ids, step], 1)
print(tokenizer.decode(ids[0], skip_special_tokens=True))'''
