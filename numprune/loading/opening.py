"""Opening a model: an embedded name, a hub id, a folder or a file."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from numprune.errors import InputError, LoadError
from numprune.files import MARKER
from numprune.loading.gguf import gguf_config, gguf_tokenizer, load_gguf, read_gguf
from numprune.loading.images import load_llamagen
from numprune.loading.narrowed import load_narrowed, recorded_sizes, restore_history, shell, sizes_of_tensors
from numprune.loading.settings import check_known, check_lists, raw_config, set_tied, settle_quantisation
from numprune.loading.sources import Source, attempt, check_folder, fetch_weights, find_source
from numprune.loading.spread import Spread, told
from numprune.loading.weights import WeightFiles, chosen_files, only, weight_files
from numprune.models.adapter import Adapter, adapter_for
from numprune.models.empty import without_memory
from numprune.models.model import Model
from numprune.models.placement import place, resolve_device, resolve_dtype
from numprune.models.written import made_tokenizer_files, saveable, tokenizer_files


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    max_parameters: int | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
) -> Model:
    """Open a model for scoring, pruning and generation.

    What lies on disk decides what a name means, the index of a checkpoint which files are read, and its tensors what
    the model is, whatever its config says of tied embeddings, data types and sizes of layers; notes tell where they
    disagreed.

    Args:
        name_or_path: an embedded name (`numprune.embedded_models()`), a hub id, a folder written by transformers, by
            `Model.save`, by `numprune.export` or by another tool that narrowed layers; a GGUF file, which is
            dequantised, or OWNER/NAME:FILE.gguf on the hub; or a LlamaGen decoder: a .pt file, or one on the hub such
            as FoundationVision/LlamaGen:c2i_B_256.pt. Its image tokenizer is looked for beside it, and the captions of
            a text-conditional one (captions.safetensors or captions.txt).
        device: a torch device, or "auto": CUDA, then MPS, then CPU.
        dtype: a torch dtype or its name; "checkpoint", the checkpoint's own; or "auto", which is that on an
            accelerator and float32 on a CPU (half precision is slower there and gains nothing). With "auto" the model
            is saved and exported in the checkpoint's own type wherever it was computed in.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run modelling code that comes with the checkpoint.
        max_parameters: refuse a model with more, before any weight is read.
        device_map: spread a model that does not fit one device over several, the host's memory and the disk, as
            accelerate does: "auto", "balanced", "balanced_low_0", "sequential", or a device ("cpu", "disk", the number
            of an accelerator) for every module. Such a model can be evaluated and generate.
        max_memory: with device_map, what weights may take in a place, such as {0: "20GB", "cpu": "40GB"}; what is
            beyond stays on the disk. By default what is free.

    Raises:
        InputError: device_map or max_memory is none, or with a model that comes as one GGUF file or draws images.
        UnsupportedArchitecture: when no adapter fits, before any weight is read.
        LoadError: when something is missing, damaged or not to be had.
    """
    name = os.fspath(name_or_path)
    source = find_source(name, revision)
    spread = _spread(source, device, device_map, max_memory)
    if source.kind == "llamagen":
        return load_llamagen(source, device=device, dtype=dtype, max_parameters=max_parameters)
    target = resolve_device(device)
    if source.kind == "gguf":
        opened = _open_gguf(source, dtype, target, max_parameters)
    else:
        opened = _open_folder(source, dtype, target, trust_remote_code, max_parameters, spread)
    module = opened.module.eval().requires_grad_(False) if spread else place(opened.module, name, target)
    notes = opened.notes if spread is None else [*opened.notes, told(module)]
    module.generation_config, repaired = saveable(module.generation_config)
    model = attempt(name, lambda: opened.adapter.wrap(module, name, source.folder))
    if model is None:
        model = Model(module=module, tokenizer=opened.tokenizer, adapter=opened.adapter, name=name)
    if opened.tokenizer is not None:
        notes += _check_tokenizer(name, opened.tokenizer, module)
    model.notes += [*notes, *repaired]
    model.tokenizer_files = opened.tokenizer_files
    if dtype == "auto" and opened.own_dtype != module.dtype:
        model.stored_dtype = opened.own_dtype
    if source.kind == "folder" and (source.path / MARKER).is_file():
        attempt(name, lambda: restore_history(model, source.path))
    return model


@dataclass
class _Opened:
    """What a source gave: module, tokenizer and its files, the data type of the weights as they lay there, notes."""

    module: PreTrainedModel
    adapter: Adapter
    tokenizer: PreTrainedTokenizerBase | None
    tokenizer_files: dict[str, bytes]
    own_dtype: torch.dtype
    notes: list[str] = field(default_factory=list)


def _spread(
    source: Source,
    device: str,
    device_map: str | Mapping[str, int | str] | None,
    max_memory: Mapping[int | str, int | str] | None,
) -> Spread | None:
    """How a source is to be spread; None where it is not."""
    if device_map is None:
        if max_memory is not None:
            raise InputError("max_memory says how much of a spread model goes where; give device_map auto as well.")
        return None
    if device != "auto":
        raise InputError(f"Device {device} and a device map were given; leave one of them out.")
    if source.kind != "folder":
        raise _as_a_whole(source.name)
    return Spread.of(device_map, max_memory)


def _as_a_whole(name: str) -> InputError:
    return InputError(
        f"{name} is opened as a whole, so that it cannot be spread; give a language model in safetensors, or leave the"
        " device map out."
    )


def _open_folder(
    source: Source,
    dtype: str | torch.dtype,
    target: torch.device,
    trust_remote_code: bool,
    limit: int | None,
    spread: Spread | None,
) -> _Opened:
    name, folder = source.name, source.path
    check_folder(source)
    if source.repository is None:
        chosen_files(folder, name)  # there are some, before anything is told from the config
    raw = raw_config(folder)
    check_lists(name, raw)
    options = {"trust_remote_code": trust_remote_code}
    config = attempt(name, lambda: _config(folder, raw, options))
    weights = None
    if getattr(config, "quantization_config", None) and source.repository is None:
        with suppress(LoadError, SafetensorError):  # then the config is believed
            weights = weight_files(folder, name)
    notes = settle_quantisation(name, config, raw, weights)
    adapter = adapter_for(config)
    if spread is not None and not adapter.reads_text:
        raise _as_a_whole(name)
    if not trust_remote_code:
        config.__dict__.pop("auto_map", None)
    if limit is not None:
        _check_size(name, config, limit)
    tokenizer = None
    if adapter.reads_text:
        tokenizer = attempt(name, lambda: AutoTokenizer.from_pretrained(folder, **options), what="the tokenizer of ")
    if weights is None:
        attempt(name, lambda: fetch_weights(source))
        weights = attempt(name, lambda: weight_files(folder, name))
        notes += settle_quantisation(name, config, raw, weights)
    own = weights.dtype() or getattr(config, "dtype", None) or torch.float32
    config.dtype = own
    wanted = resolve_dtype(dtype, config, target)
    module, told = attempt(name, lambda: _module(source, config, adapter, weights, wanted, options, spread))
    files = tokenizer_files(folder) if tokenizer is not None else {}
    return _Opened(module, adapter, tokenizer, files, own, [*notes, *weights.notes, *told])


def _config(folder: Path, raw: dict[str, Any], options: dict[str, Any]) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, **options)
    except Exception:
        check_known(raw)  # which needs less of it
        raise


def _module(
    source: Source,
    config: Any,
    adapter: Adapter,
    weights: WeightFiles,
    dtype: torch.dtype,
    options: dict[str, Any],
    spread: Spread | None,
) -> tuple[PreTrainedModel, list[str]]:
    """The module with its weights, and notes."""
    sizes = recorded_sizes(source.path, config)
    notes = []
    if sizes is None and weights.tensors is not None:
        sizes = sizes_of_tensors(source.name, config, adapter, weights)
        if sizes is not None:
            notes.append(
                f"Layers of {source.name} differ from the sizes in its config; it was opened by the shapes of its"
                " tensors."
            )
    if sizes is not None:
        return load_narrowed(source.path, weights, sizes, config, adapter, dtype, spread), notes
    with ExitStack() as places:
        folder = places.enter_context(only(source.path, weights))
        if spread is not None:
            # Weights that the disk keeps in another data type than their files have are written here.
            written = places.enter_context(TemporaryDirectory(prefix="numprune-"))
            options = {
                **options,
                "device_map": spread.of_module(shell(config, adapter, dtype)),
                "offload_folder": written,
            }
        module, info = adapter.auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            weights_only=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
            **options,
        )
        if spread is not None:
            weakref.finalize(module, places.pop_all().close)
    return module, notes + _checked(source.name, module, info)


def _open_gguf(source: Source, dtype: str | torch.dtype, target: torch.device, limit: int | None) -> _Opened:
    name = source.name
    # transformers looks for settings beside the file, which may be those of another model.
    with TemporaryDirectory() as alone:
        path = Path(alone) / source.path.name
        path.symlink_to(source.path.resolve())
        file = read_gguf(path, name)
        config = attempt(name, lambda: gguf_config(file, name))
        adapter = adapter_for(config)
        if limit is not None:
            _check_size(name, config, limit)
        tokenizer, told = attempt(name, lambda: gguf_tokenizer(file), what="the tokenizer of ")
        config.dtype = file.dtype
        wanted = resolve_dtype(dtype, config, target)
        module, info = attempt(name, lambda: load_gguf(file, config, adapter, wanted))
    notes = [file.note, *told, *_checked(name, module, info)]
    return _Opened(module, adapter, tokenizer, made_tokenizer_files(tokenizer), file.dtype, notes)


def _check_size(name: str, config: Any, limit: int) -> None:
    with without_memory():
        shell = attempt(name, lambda: adapter_for(config).auto_class.from_config(config))
    shell.tie_weights()
    if shell.num_parameters() > limit:
        raise LoadError(
            f"{name} has {shell.num_parameters():,} parameters, more than the {limit:,} allowed here;"
            " choose a smaller model."
        )


def _checked(name: str, module: PreTrainedModel, info: dict[str, Any]) -> list[str]:
    """Refuse what is missing; let the tensors say whether the output layer is the embedding, and tell when the config
    said something else."""
    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    missing, notes = set(info["missing_keys"]), []
    if head is not None:
        own = next(key for key, part in module.named_modules() if part is head) + ".weight"
        tied = head.weight is embedding.weight
        if not tied and own in missing:
            head.weight, tied = embedding.weight, True
            missing.discard(own)
            notes.append(f"{name} has no {own}, so the embedding is its output layer, whatever its config says.")
        elif not tied and bool(getattr(module.config, "tie_word_embeddings", False)):
            notes.append(f"{name} has a {own} of its own, so it is not tied to the embedding, as its config says.")
        set_tied(module.config, tied)
    for keys, what in (
        (missing, "are missing"),
        ({key for key, *_ in info["mismatched_keys"]}, "have another shape than the config says"),
    ):
        if keys:
            raise LoadError(
                f"{len(keys)} tensors of the weights in {name} {what} (such as {min(keys)}); download the checkpoint"
                " again."
            )
    return notes


def _check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, module: PreTrainedModel) -> list[str]:
    """Refuse a tokenizer of another model; a note for tokens somebody added for which the model has no embedding."""
    rows = module.get_input_embeddings().weight.shape[0]
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not beyond:
        return []
    if beyond.keys() - tokenizer.get_added_vocab().keys():
        raise LoadError(
            f"The tokenizer of {name} has ids up to {max(beyond.values())} but the model embeds {rows} tokens;"
            " use the tokenizer the model was trained with."
        )
    first = min(beyond, key=beyond.__getitem__)
    return [
        f"The tokenizer of {name} has {len(beyond)} added tokens for which the model has no embedding (such as"
        f" {first}); text that uses them is refused."
    ]
