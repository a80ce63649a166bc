"""Opening a model: an embedded name, a hub id or a folder."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from numprune.errors import LoadError, NumpruneError
from numprune.files import MARKER
from numprune.llamagen import CAPTION_FILES, TEXT_VQ_FILE, VQ_FILE, LlamaGen, load_checkpoint
from numprune.loading.narrowed import load_narrowed, recorded_sizes, restore_history
from numprune.models.adapter import Adapter, adapter_for
from numprune.models.embedded import embedded_model, embedded_models
from numprune.models.model import Model
from numprune.models.placement import place, resolve_device, resolve_dtype

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    max_parameters: int | None = None,
) -> Model:
    """Open a model for scoring, pruning and generation.

    Args:
        name_or_path: an embedded name (`numprune.embedded_models()`), a hub id, a folder written by transformers, by
            `Model.save` or by `numprune.export`, or a LlamaGen decoder: a .pt file, or one on the hub such as
            FoundationVision/LlamaGen:c2i_B_256.pt. Its image tokenizer is looked for beside it, and the captions of a
            text-conditional one (captions.safetensors or captions.txt).
        device: a torch device, or "auto": CUDA, then MPS, then CPU.
        dtype: a torch dtype or its name; "checkpoint", the checkpoint's own; or "auto", which is that on an
            accelerator and float32 on a CPU (half precision is slower there and gains nothing).
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run modelling code that comes with the checkpoint.
        max_parameters: refuse a model with more, before any weight is read.

    Raises:
        UnsupportedArchitecture: when no adapter fits, before any weight is read.
        LoadError: when something is missing, damaged or not to be had.
    """
    name = os.fspath(name_or_path)
    if name.endswith(".pt"):
        return _load_llamagen(name, revision, device=device, dtype=dtype, max_parameters=max_parameters)
    source = _source(name)
    target = resolve_device(device)
    options = {"trust_remote_code": trust_remote_code, "revision": revision}
    config = _attempt(name, lambda: AutoConfig.from_pretrained(source, **options))
    adapter = adapter_for(config)
    if max_parameters is not None:
        _check_size(name, config, max_parameters)
    tokenizer = None
    if adapter.reads_text:
        tokenizer = _attempt(name, lambda: AutoTokenizer.from_pretrained(source, **options), what="the tokenizer of ")
    wanted = resolve_dtype(dtype, config, target)
    sizes = _attempt(name, lambda: recorded_sizes(source, config))
    if sizes is None:
        module = _attempt(name, lambda: _load_stock(source, config, adapter, wanted, options))
    else:
        folder = _attempt(name, lambda: _folder(source, revision))
        module = _attempt(name, lambda: load_narrowed(folder, sizes, config, adapter, wanted))
    if tokenizer is not None:
        _check_tokenizer(name, tokenizer, module)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
    module = place(module, name, target)
    model = _attempt(name, lambda: adapter.wrap(module, name, Path(source)))
    if model is None:
        model = Model(module=module, tokenizer=tokenizer, adapter=adapter, name=name)
    if (Path(source) / MARKER).is_file():
        _attempt(name, lambda: restore_history(model, Path(source)))
    return model


def _load_llamagen(name: str, revision: str | None, **options: Any) -> LlamaGen:
    """A published decoder, from disk or OWNER/NAME:FILE on the hub, with the image tokenizer that lies beside it.

    Captions of a text-conditional decoder lie beside it too, or in the working folder when it comes from the hub.
    """
    repository, _, file = name.partition(":")
    notes = []
    vq_file = TEXT_VQ_FILE if Path(file or name).name.startswith("t2i") else VQ_FILE
    captions_folder = Path()
    if file and repository.count("/") == 1 and not Path(name).exists():
        path = _attempt(name, lambda: hf_hub_download(repository, file, revision=revision))
        try:
            vq: str | Path | None = hf_hub_download(repository, vq_file, revision=revision)
        except Exception as error:  # hub and network errors come in many types
            vq = None
            notes.append(f"{repository} gave no image tokenizer ({type(error).__name__}), so codes cannot be painted.")
    else:
        path = name
        captions_folder = Path(name).expanduser().parent
        beside = captions_folder / vq_file
        vq = beside if beside.is_file() else None
    captions = None
    if vq_file == TEXT_VQ_FILE:
        files = (captions_folder / file for file in CAPTION_FILES)
        captions = next((file for file in files if file.is_file()), None)
    model = load_checkpoint(path, vq=vq, captions=captions, **options)
    model.name = name
    model.notes += notes
    return model


def _source(name: str) -> str:
    embedded = embedded_model(name)
    if embedded is not None:
        return str(embedded)
    known = ", ".join(embedded_models())
    try:
        path = Path(name).expanduser()
        exists = bool(name) and path.exists()
    except (OSError, RuntimeError):  # longer than a path can be, or the home of an unknown user
        exists = False
    if exists and path.is_dir():
        if not (path / "config.json").is_file():
            raise LoadError(f"Folder {name} has no config.json; give a folder written by transformers or numprune.")
        if not any(file for pattern in _WEIGHTS for file in path.glob(pattern)):
            raise LoadError(f"Folder {name} has no weights (*.safetensors); copy them there or choose another folder.")
        return str(path)
    if exists:
        raise LoadError(f"{name} is a file, not a model folder; give the folder that holds its config.json.")
    looks_local = name.startswith(("/", ".", "~")) or name.count("/") != 1
    if looks_local:
        raise LoadError(
            f"'{name[:80]}' is neither an embedded model ({known}) nor an existing folder nor a hub id"
            " (owner/name); check the spelling."
        )
    return name


def _check_size(name: str, config: Any, limit: int) -> None:
    with init_empty_weights():
        shell = _attempt(name, lambda: adapter_for(config).auto_class.from_config(config))
    shell.tie_weights()
    if shell.num_parameters() > limit:
        raise LoadError(
            f"{name} has {shell.num_parameters():,} parameters, more than the {limit:,} allowed here;"
            " choose a smaller model."
        )


def _load_stock(
    source: str, config: Any, adapter: Adapter, dtype: torch.dtype, options: dict[str, Any]
) -> PreTrainedModel:
    module, info = adapter.auto_class.from_pretrained(
        source,
        config=config,
        dtype=dtype,
        weights_only=True,
        ignore_mismatched_sizes=True,  # they are refused below, by name
        output_loading_info=True,
        **options,
    )
    for keys, what in (
        (info["missing_keys"], "are missing"),
        ({key for key, *_ in info["mismatched_keys"]}, "have another shape than the config says"),
    ):
        if keys:
            raise LoadError(
                f"{len(keys)} tensors of the weights in {source} {what} (such as {min(keys)}); download the checkpoint"
                " again."
            )
    return module


def _folder(source: str, revision: str | None) -> Path:
    """Where the files of a source lie, fetched when it is a hub id."""
    if Path(source).is_dir():
        return Path(source)
    return Path(snapshot_download(source, revision=revision, allow_patterns=["*.json", "*.safetensors"]))


def _check_tokenizer(name: str, tokenizer: Any, module: PreTrainedModel) -> None:
    rows = module.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise LoadError(
            f"The tokenizer of {name} has ids up to {highest} but the model embeds {rows} tokens;"
            " use the tokenizer the model was trained with."
        )


def _attempt(name: str, step: Callable[[], Any], *, what: str = "") -> Any:
    """Run one step of loading and turn what libraries raise, in many types, into one sentence."""
    try:
        return step()
    except NumpruneError:
        raise
    except SafetensorError as error:
        raise LoadError(
            f"The weights of {name} are damaged or cut short ({error}); download or save them again."
        ) from error
    except (pickle.UnpicklingError, EOFError) as error:
        raise LoadError(
            f"The weights of {name} are a damaged pickle or one that wants to run code, which is refused;"
            " convert them to safetensors."
        ) from error
    except Exception as error:
        reason = shorten(str(error) or type(error).__name__, 200, placeholder=" …").rstrip(" .:")
        advice = "mend that folder" if Path(name).exists() else "check the name and the network"
        raise LoadError(f"Cannot load {what}{name}: {reason}; {advice}, or choose an embedded model.") from error
