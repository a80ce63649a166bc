"""The model as the rest of the package sees it: a transformers module, its tokenizer and its adapter."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from numprune.errors import InputError, NumericalError, NumpruneError, memory_ran_out
from numprune.files import MARKER, atomic_folder, to_json
from numprune.linalg import all_finite
from numprune.models import (  # noqa: F401  (each registers its adapter)
    gpt_neox,
    granite,
    llama,
    multimodal,
    olmo2,
    opt,
    phi3,
    stablelm,
)
from numprune.models.adapter import Adapter, Block, EmptyAttention, blocks_parameters, make_linear, narrow_linear
from numprune.models.depth import beside_units, drop_layers
from numprune.models.identity import fingerprint
from numprune.models.pieces import pieces
from numprune.models.placement import check_together, input_device, own_parameters
from numprune.models.written import write_module, write_tokenizer
from numprune.plan.keys import KINDS, ModuleKey
from numprune.plan.recipe import Recipe
from numprune.plan.report import PruningReport

FORMAT = 1


@dataclass
class Model:
    """A loaded language model.

    Attributes:
        module: the transformers model itself, in eval mode, on its device.
        tokenizer: its tokenizer, or None for a model without one (perplexity and calibration then need token ids).
        adapter: what numprune knows about the architecture.
        name: the embedded name, hub id or folder it came from.
        recipe: how it was pruned; None for a dense model.
        report: what pruning did to each module; None for a dense model.
        stored_dtype: data type its weights are written in; None for the one they have in memory.
        tokenizer_files: the files the tokenizer was read from, by name, which are written as they were.
        origins: of every layer, its number in the model it was pruned from; empty where no layer went.
    """

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    adapter: Adapter
    name: str
    recipe: Recipe | None = None
    report: PruningReport | None = None
    notes: list[str] = field(default_factory=list)
    stored_dtype: torch.dtype | None = None
    tokenizer_files: dict[str, bytes] = field(default_factory=dict, repr=False)
    origins: tuple[int, ...] = ()

    @property
    def config(self) -> Any:
        return self.module.config

    @property
    def device(self) -> torch.device:
        """Where its inputs go, and its weights unless it is spread over several devices."""
        return input_device(self.module)

    @property
    def dtype(self) -> torch.dtype:
        return self.module.dtype

    @property
    def architecture(self) -> str:
        return type(self.module).__name__

    @property
    def blocks(self) -> list[Block]:
        """The prunable modules, attention before MLP in each layer."""
        return self.adapter.blocks(self.module)

    @property
    def layers(self) -> int:
        return len(self.adapter.layers(self.module))

    @property
    def parameters(self) -> int:
        """Parameters counted once each (a tied embedding is one tensor)."""
        return sum(p.numel() for p in own_parameters(self.module))

    @property
    def prunable_parameters(self) -> int:
        """Parameters that belong to heads and channels."""
        return blocks_parameters(self.blocks)

    @property
    def bytes(self) -> int:
        """Memory of the weights, in bytes."""
        return sum(p.numel() * p.element_size() for p in own_parameters(self.module))

    @property
    def written_dtype(self) -> torch.dtype:
        """The data type its weights are written in."""
        return self.stored_dtype or self.dtype

    @property
    def stored_bytes(self) -> int:
        """What the weights take on disk, in bytes."""
        return self.bytes if self.stored_dtype is None else self.parameters * self.stored_dtype.itemsize

    @property
    def reads_text(self) -> bool:
        """Whether it reads text; image models read classes."""
        return self.adapter.reads_text

    @property
    def maximum_length(self) -> int | None:
        """Longest sequence in tokens the model supports; None when its config does not say."""
        return self.adapter.maximum_length(self.config)

    @property
    def sampling_settings(self) -> dict[str, float]:
        """How the model draws its own calibration samples, where that is not plain sampling at temperature 1."""
        return {}

    def token_names(self, ids: Sequence[int]) -> list[str]:
        """What every token adds to a text; its id in digits for models without a tokenizer."""
        return [str(token) for token in ids] if self.tokenizer is None else pieces(self.tokenizer, ids)

    @property
    def beside(self) -> tuple[int | None, ...]:
        """Parameters of every layer outside its units; None where the layer cannot go as a whole."""
        return beside_units(self.module, self.adapter)

    def around(self, module: PreTrainedModel) -> Self:
        """The same model around another module of the architecture, with no history."""
        return dataclasses.replace(self, module=module, recipe=None, report=None, notes=[], origins=())

    def units(self) -> dict[ModuleKey, int]:
        """Units left in each prunable module, emptied modules included as 0."""
        present = {block.key: block.units for block in self.blocks}
        keys = [ModuleKey(layer, kind) for layer in range(self.layers) for kind in KINDS]
        return {key: present.get(key, 0) for key in keys}

    def fingerprint(self) -> str:
        """Short hash of the config and of all weights; the same on every device.

        Weights are rounded to bfloat16 first, so that a checkpoint keeps its fingerprint in float32 and bfloat16;
        float16 keeps it too where it holds the checkpoint's values exactly. What of the config says nothing about the
        logits (`numprune.models.identity`) is left out. Reads all weights once.

        Raises:
            InputError: it is spread over several devices.
        """
        self.check_together()
        return fingerprint(self.module)

    def earlier_fingerprint(self) -> str:
        """The fingerprint that numprune 0.1 gave, in recipes and folders of that time: of 64 values a tensor."""
        digest = hashlib.sha256(json.dumps([self.config.model_type, self.layers]).encode())
        for name, parameter in sorted(self.module.named_parameters()):
            flat = parameter.detach().reshape(-1)
            step = max(1, flat.numel() // 64)
            sample = flat[::step][:64].to("cpu", torch.float32).to(torch.bfloat16).float()
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(sample.numpy().tobytes())
        return digest.hexdigest()[:16]

    def check_own(self, **fingerprints: str) -> str:
        """The model's fingerprint.

        Raises:
            InputError: one of those given by what they belong to (plan, statistics) is another one.
        """
        own = self.fingerprint()
        for what, owner in fingerprints.items():
            if owner != own:
                raise InputError(f"The {what} belong to another model than {self.name}; make them for this one.")
        return own

    def check_together(self) -> None:
        """Raise InputError when it is spread over several devices."""
        check_together(self.module, self.name)

    def check_finite(self, advice: str) -> None:
        """Raise NumericalError, which names the tensor and ends with `advice`, when a weight is NaN or infinite.

        Raises:
            InputError: it is spread over several devices.
        """
        self.check_together()
        for name, parameter in self.module.named_parameters():
            if not all_finite(parameter.detach()):
                raise NumericalError(f"Tensor {name} of {self.name} has a value that is NaN or infinite; {advice}.")

    def adopt(self, recipe: Recipe) -> Recipe:
        """A recipe with the name and fingerprint of this model.

        Raises:
            InputError: it was made for another model, or names modules or units that this one does not have.
        """
        own = self.fingerprint()
        units = {block.key: block.units for block in self.blocks}
        recipe.check_for(self.name, [own, self.earlier_fingerprint()], units)
        return recipe.replace(model=self.name, fingerprint=own)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write weights (safetensors), config, tokenizer, per-layer shapes, recipe and report to `folder`.

        The folder is written beside its target and renamed at the end. An existing folder is replaced only when
        numprune wrote it.

        Raises:
            InputError: when `folder` exists and is something else, or the model is spread over several devices.
            NumpruneError: when it cannot be written.
        """
        self.check_together()
        with atomic_folder(folder) as partial:
            try:
                self._write(partial)
            except (OSError, NumpruneError):
                raise
            except Exception as error:  # safetensors reports a full disk as an error type of its own
                if memory_ran_out(error):
                    raise
                raise NumpruneError(f"Writing {folder} failed: {error}; nothing was left there.") from error
            units = {str(key): count for key, count in self.units().items()}
            marker = {"format": FORMAT, "base": self.name, "units": units}
            width = self.adapter.residual_width(self.module)
            if width is not None:
                marker["residual_width"] = width
            if self.origins:
                marker["layers"] = list(self.origins)
            (partial / MARKER).write_text(to_json(marker))
            if self.recipe is not None:
                (partial / "recipe.json").write_text(self.recipe.to_json())
            if self.report is not None:
                (partial / "report.json").write_text(self.report.to_json())

    def _write(self, folder: Path) -> None:
        """Write what transformers reads."""
        write_module(self.module, folder, self.written_dtype)
        write_tokenizer(self.tokenizer, self.tokenizer_files, folder)


def twin(module: PreTrainedModel) -> PreTrainedModel:
    """A model of the same tensors with modules and a config of its own, which can be changed without the original."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, tensors)


def slice_module(
    module: PreTrainedModel,
    adapter: Adapter,
    keep: Mapping[ModuleKey, Sequence[int]],
    last_weights: Mapping[ModuleKey, torch.Tensor] | None = None,
    last_biases: Mapping[ModuleKey, torch.Tensor] | None = None,
    gone: Collection[int] = (),
) -> PreTrainedModel:
    """A copy of `module` with only the units in `keep`; modules not named keep all of theirs.

    Linears that shrink are never copied at full size, so the peak memory is that of the two models.

    Args:
        keep: ascending unit indices kept in each module; empty to empty it.
        last_weights: replacements (out, kept in-features) for the sliced weight of a module's last linear.
        last_biases: replacements (out,) for the bias of a module's last linear, which may have none; used for
            modules that lose units.
        gone: layers that are left out; the later ones move up.
    """
    layers = dict(enumerate(adapter.layers(module)))
    memo, changed = _narrower(adapter, layers, adapter.blocks(module), keep, last_weights or {}, last_biases or {})
    sliced = copy.deepcopy(module, memo)
    for key in changed:
        if key.kind == "attention" and keep[key]:
            adapter.resize_attention(adapter.layers(sliced)[key.layer], len(keep[key]), sliced.config)
    drop_layers(sliced, adapter, gone)
    return sliced


def slice_layer(
    layer: nn.Module,
    adapter: Adapter,
    index: int,
    config: Any,
    keep: Mapping[ModuleKey, Sequence[int]],
    last_weights: Mapping[ModuleKey, torch.Tensor] | None = None,
    last_biases: Mapping[ModuleKey, torch.Tensor] | None = None,
) -> nn.Module:
    """A copy of one decoder layer, as `slice_module` makes it of a whole model."""
    blocks = adapter.layer_blocks(layer, index, config)
    memo, changed = _narrower(adapter, {index: layer}, blocks, keep, last_weights or {}, last_biases or {})
    sliced = copy.deepcopy(layer, memo)
    for key in changed:
        if key.kind == "attention" and keep[key]:
            adapter.resize_attention(sliced, len(keep[key]), config)
    return sliced


def _narrower(
    adapter: Adapter,
    layers: Mapping[int, nn.Module],
    blocks: Sequence[Block],
    keep: Mapping[ModuleKey, Sequence[int]],
    last_weights: Mapping[ModuleKey, torch.Tensor],
    last_biases: Mapping[ModuleKey, torch.Tensor],
) -> tuple[dict[int, nn.Module], list[ModuleKey]]:
    """What stands in a copy for the parts that shrink, by their ids, and the modules that lose units."""
    memo: dict[int, nn.Module] = {}
    changed: list[ModuleKey] = []
    for block in blocks:
        kept = keep.get(block.key)
        if kept is None or len(kept) == block.units:
            if block.key in last_weights:
                memo[id(block.last)] = make_linear(last_weights[block.key], block.last.bias)
            continue
        changed.append(block.key)
        if block.key.kind == "attention" and not kept:
            owner, name = adapter.attention_owner(layers[block.key.layer])
            memo[id(getattr(owner, name))] = EmptyAttention(
                block.key.layer, last_biases.get(block.key, block.last.bias)
            )
            continue
        for linear, sections in block.inputs:
            rows = torch.cat([section.indices(kept) for section in sections])
            memo[id(linear)] = narrow_linear(linear, rows=rows)
        if block.key in last_weights:
            memo[id(block.last)] = make_linear(last_weights[block.key], block.last.bias)
        else:
            memo[id(block.last)] = narrow_linear(block.last, columns=block.channels(kept))
        if block.key in last_biases:
            bias = last_biases[block.key].detach().clone()
            memo[id(block.last)].bias = nn.Parameter(bias, requires_grad=False)
    return memo, changed
