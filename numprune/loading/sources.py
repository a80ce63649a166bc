"""What a name stands for: an embedded model, a folder, a file or a repository on the hub. What lies on disk decides."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError

from numprune.errors import LoadError, NumpruneError, memory_ran_out
from numprune.models.embedded import embedded_model, embedded_models
from numprune.waiting import bound_hub

Kind = Literal["folder", "gguf", "llamagen"]
_SETTINGS = ("*.json", "*.jinja", "*.model", "*.txt", "*.py")
"""Patterns of the small files of a repository, which say what it holds."""
_LORA_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Source:
    """Where a model lies.

    Attributes:
        name: as it was given.
        kind: a folder of transformers or numprune, a GGUF file or a LlamaGen checkpoint.
        path: the folder or the file; of a repository, its copy on this machine.
        repository: its id on the hub; None for what lay here.
        revision: of the repository.
    """

    name: str
    kind: Kind
    path: Path
    repository: str | None = None
    revision: str | None = None

    @property
    def folder(self) -> Path:
        return self.path if self.kind == "folder" else self.path.parent


def find_source(name: str, revision: str | None) -> Source:
    """What `name` stands for, with its settings on this machine.

    Raises:
        LoadError: there is nothing of that name, or something else.
    """
    embedded = embedded_model(name)
    if embedded is not None:
        return Source(name, "folder", embedded)
    path = _existing(name)
    if path is not None and path.is_dir():
        return Source(name, "folder", path)
    if path is not None:
        return Source(name, _kind(name, path), path)
    repository, _, file = name.partition(":")
    if file and repository.count("/") == 1 and file.endswith((".gguf", ".pt")):
        bound_hub()
        fetched = Path(attempt(name, lambda: hf_hub_download(repository, file, revision=revision)))
        return Source(name, "gguf" if file.endswith(".gguf") else "llamagen", fetched, repository, revision)
    looks_local = name.startswith(("/", ".", "~")) or name.count("/") != 1
    if looks_local or name.endswith((".gguf", ".pt", ".safetensors", ".bin")):
        known = ", ".join(embedded_models())
        if name.endswith((".gguf", ".pt")) and "\0" not in name:
            what = "a .pt file that LlamaGen published" if name.endswith(".pt") else "a GGUF file, or OWNER/NAME:FILE"
            raise LoadError(f"There is no file {name[-200:]}; give {what}.")
        raise LoadError(
            f"'{' '.join(name.split())[:80]}' is neither an embedded model ({known}) nor an existing folder nor a hub"
            " id (owner/name); check the spelling."
        )
    return Source(name, "folder", _fetched(name, revision, _SETTINGS), name, revision)


def _existing(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # longer than a path can be, or the home of an unknown user
        return None


def _kind(name: str, path: Path) -> Kind:
    """What a file is, by what it begins with."""
    try:
        with path.open("rb") as file:
            begin = file.read(8)
    except OSError as error:
        raise LoadError(f"{name} cannot be read ({error.strerror}); choose another model.") from error
    if begin[:4] == b"GGUF":
        return "gguf"
    pickled = begin[:4] == b"PK\x03\x04" or begin[:1] == b"\x80"
    if path.suffix == ".pt" or (pickled and not (path.parent / "config.json").is_file()):
        return "llamagen"
    if path.suffix == ".gguf":
        raise LoadError(f"{name} is no GGUF file, whatever its name; download it again.")
    raise LoadError(f"{name} is a file, not a model folder; give the folder that holds its config.json.")


def fetch_weights(source: Source) -> None:
    """Bring the weights of a repository here: the files its index names, or the one there is without an index."""
    if source.repository is None or source.kind != "folder":
        return
    for names in _weight_names(source.path):
        _fetched(source.repository, source.revision, names)
        if any(file for name in names for file in source.path.glob(name)):
            return


def _weight_names(folder: Path) -> list[tuple[str, ...]]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [tuple(sorted(set(json.loads(index.read_text())["weight_map"].values())))]
    return [("model.safetensors",), ("pytorch_model*.bin",)]


def _fetched(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """A copy of the files of a repository that fit, without those of its subfolders but for chat templates."""
    options = {"allow_patterns": list(patterns), "ignore_patterns": ["original/*", "onnx/*", "checkpoint-*/*"]}
    return Path(attempt(repository, lambda: _snapshot(repository, revision, options)))


def _snapshot(repository: str, revision: str | None, options: dict[str, Any]) -> str:
    """`snapshot_download`, which asks which commit is meant without any bound on how long the hub may be silent."""
    bound_hub()
    commit = revision
    if not re.fullmatch("[0-9a-f]{40}", revision or ""):
        try:
            commit = HfApi().repo_info(repository, revision=revision, timeout=HF_HUB_DOWNLOAD_TIMEOUT).sha
        except Exception as error:
            # As `snapshot_download` does: what was fetched before is good enough.
            try:
                return snapshot_download(repository, revision=revision, local_files_only=True, **options)
            except LocalEntryNotFoundError:
                raise error from None
    return snapshot_download(repository, revision=commit, **options)


def check_folder(source: Source) -> None:
    """Raise LoadError for a folder that is no whole model, saying what it is."""
    if source.kind != "folder":
        return
    name, path = source.name, source.path
    lora = next((file for file in _LORA_WEIGHTS if (path / file).is_file()), None)
    if (path / "adapter_config.json").is_file() and (lora or not (path / "config.json").is_file()):
        raise LoadError(_merge_first(name, path))
    if (path / "config.json").is_file():
        return
    gguf = sorted(file.name for file in path.glob("*.gguf"))
    if gguf:
        raise LoadError(f"Folder {name} has no config.json but GGUF files; give one of them, such as {name}/{gguf[0]}.")
    if any((path / file).is_file() for file in ("params.json", "consolidated.00.pth")):
        raise LoadError(
            f"Folder {name} has no config.json; it holds the weights as their authors published them (params.json,"
            " consolidated.*). Give the same model in transformers' format."
        )
    if (path / "model_index.json").is_file():
        raise LoadError(f"Folder {name} is a pipeline of diffusers (model_index.json), not a language model.")
    inner = sorted(file.parent.name for file in path.glob("*/config.json"))
    if inner:
        raise LoadError(f"Folder {name} has no config.json, but {inner[-1]} in it has one; give {name}/{inner[-1]}.")
    raise LoadError(f"Folder {name} has no config.json; give a folder written by transformers or numprune.")


def _merge_first(name: str, path: Path) -> str:
    try:
        base = json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = None
    return (
        f"{name} holds an adapter (LoRA), which has to be merged into its base model"
        f"{f' {base}' if base else ''} first: AutoPeftModelForCausalLM.from_pretrained('{name}')"
        ".merge_and_unload().save_pretrained('merged'), from peft, writes the model to give here; if that was done"
        " already, take adapter_config.json and adapter_model.* out of the folder."
    )


def attempt(name: str, step: Callable[[], Any], *, what: str = "") -> Any:
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
        if memory_ran_out(error):
            raise
        reason = shorten(str(error) or type(error).__name__, 200, placeholder=" …").rstrip(" .:")
        if _existing(name) is not None or embedded_model(name) is not None:
            raise LoadError(
                f"Cannot load {what}{name}: {reason}; mend that folder, or choose an embedded model."
            ) from error
        raise LoadError(
            f"Cannot load {what}{name}: there is no such file or folder here, and as a hub id it gave nothing"
            f" ({reason}); check the name and the network, or choose an embedded model."
        ) from error
