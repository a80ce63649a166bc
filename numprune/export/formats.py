"""Formats a model can be written in, known by name to the package, the command line and the dashboard.

A format is one file in this folder and its `Format` at the end of this one; what is common to all (refusing a model
before anything is written, options, writing beside the target, sizes) is here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numprune.errors import CancelEvent, InputError, Progress
from numprune.files import MARKER, atomic_file, atomic_folder, to_json

if TYPE_CHECKING:
    from numprune.models.model import Model


@dataclass(frozen=True)
class Format:
    """A way to write a model.

    Attributes:
        about: what it is and what opens it, in a few words.
        suffix: of the file it writes; empty for a folder.
        refusal: why a model cannot be written so, as half a sentence after its name; None when it can.
        write: writes the model to an empty folder or a file that does not exist, given the options as keywords, and
            returns notes, in sentences.
        snippet: code or a command that loads what lies at a path.
        options: values every option can take, the default first.
    """

    about: str
    suffix: str
    refusal: Callable[[Model], str | None]
    write: Callable[..., list[str]]
    snippet: Callable[[Model, Path], str]
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: the folder or file.
        format: a name in `FORMATS`.
        bytes: its size on disk.
        notes: what a user should know about it, in sentences.
        snippet: code or a command that loads it.
    """

    path: Path
    format: str
    bytes: int
    notes: list[str]
    snippet: str


FORMATS: dict[str, Format] = {}


def register(name: str, format: Format) -> None:
    """Make a format known by name."""
    FORMATS[name] = format


def formats_for(model: Model) -> dict[str, str | None]:
    """Every format with the reason it cannot carry this model, or None when it can."""
    return {name: format.refusal(model) for name, format in FORMATS.items()}


def check_export(model: Model, format: str, options: Mapping[str, str] | None = None) -> dict[str, str]:
    """All options of a format, given ones and defaults; nothing is written.

    Raises:
        InputError: the format or an option is not known, or the format cannot carry the model.
    """
    if format not in FORMATS:
        raise InputError(f"Format '{format}' is not known; use {', '.join(FORMATS)}.")
    chosen = FORMATS[format]
    reason = chosen.refusal(model)
    if reason is not None:
        others = [name for name, refused in formats_for(model).items() if refused is None]
        raise InputError(f"{model.name} {reason}, so '{format}' cannot carry it; use {' or '.join(others)}.")
    known = {name: values[0] for name, values in chosen.options.items()}
    for name, value in (options or {}).items():
        if name not in known:
            takes = f"; it takes {', '.join(known)}" if known else " and takes none"
            raise InputError(f"Format '{format}' has no option '{name}'{takes}.")
        if value not in chosen.options[name]:
            raise InputError(f"{name} is '{value}'; '{format}' takes {', '.join(chosen.options[name])}.")
        known[name] = value
    return known


def export(
    model: Model,
    target: str | os.PathLike[str],
    *,
    format: str = "transformers",
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Exported:
    """Write `model` in a format that another engine opens; `model` is not changed.

    Written beside the target and renamed at the end, so that a stop or a full disk leaves nothing incomplete.

    Args:
        target: a folder, or a file with the format's suffix; an earlier export is replaced.
        format: a name in `FORMATS`.
        options: the format's own, see `Format.options`.

    Raises:
        InputError: the format cannot carry the model, an option is wrong, or `target` is something else's.
        NumpruneError: it cannot be written, or a package the format needs is missing.
        Cancelled: `cancel` was set.
    """
    model.check_together()
    settings: dict[str, Any] = check_export(model, format, options)
    chosen, target = FORMATS[format], Path(target)
    if chosen.suffix:
        if target.suffix != chosen.suffix:
            raise InputError(f"{target} does not end in {chosen.suffix}; '{format}' writes one such file.")
        with atomic_file(target) as partial:
            notes = chosen.write(model, partial, progress=progress, cancel=cancel, **settings)
        size = target.stat().st_size
    else:
        with atomic_folder(target) as partial:
            notes = chosen.write(model, partial, progress=progress, cancel=cancel, **settings)
            if not (partial / MARKER).exists():  # the marker of numprune's own folder says more
                (partial / MARKER).write_text(to_json({"export": format, "base": model.name}))
        size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return Exported(target, format, size, notes, chosen.snippet(model, target))


def _built_in(
    name: str, about: str, suffix: str = "", *, file: str = "", options: Mapping[str, tuple[str, ...]] | None = None
) -> None:
    """Register a format of this folder; its file, which needs torch, is imported when it is first asked something."""

    def late(what: str) -> Callable[..., Any]:
        return lambda *given, **named: getattr(import_module(f"{__package__}.{file or name}"), what)(*given, **named)

    register(name, Format(about, suffix, late("refusal"), late("write"), late("snippet"), options or {}))


_built_in(
    "numprune", "a folder for numprune itself, every architecture and every plan, image models whole", file="folder"
)
_built_in(
    "gguf",
    "one file for llama.cpp and what embeds it, tokenizer included",
    ".gguf",
    options={"dtype": ("f16", "f32", "bf16", "q8_0")},
)
_built_in("llamagen", "LlamaGen's own .pt, for LlamaGen decoders with equal layers", ".pt")
_built_in("transformers", "a folder for AutoModel of transformers, every architecture and every plan")
_built_in("onnx", "a folder with one graph for ONNX Runtime and others, with a cache")
_built_in("stock", "a folder for transformers and what reads its folders, no custom code; equal counts in all layers")
