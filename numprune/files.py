"""Writing files and folders so that nothing half-written ever looks complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from numprune.errors import InputError, NumpruneError

MARKER = "numprune.json"
"""File that marks a folder as written by numprune; only such a folder is ever replaced."""

_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside `target`; rename it to `target` when the block ends without an error.

    Raises:
        InputError: when `target` exists and is not an earlier output of numprune.
        NumpruneError: when the disk refuses; the partial folder is removed.
    """
    target = Path(target)
    check_output(target)
    with _beside(target) as partial:
        yield partial
        replace_folder(partial, target)


@contextmanager
def atomic_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of a file to write beside `target`; rename it to `target` when the block ends without an error.

    Raises:
        InputError: when `target` is a folder.
        NumpruneError: when the disk refuses; the partial file is removed.
    """
    target = Path(target)
    if target.is_dir():
        raise InputError(f"{target} is a folder; name a file to write.")
    with _beside(target) as folder:
        partial = folder / target.name
        yield partial
        _permit(partial)
        partial.replace(target)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`, which is gone afterwards unless it was renamed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise NumpruneError(f"Cannot write beside {target}: {error.strerror}; choose another output folder.") from error
    try:
        yield partial
    except OSError as error:
        raise NumpruneError(
            f"Writing {target} failed: {error.strerror or error}; nothing was left there, free some space and repeat."
        ) from error
    except SafetensorError as error:  # what a full disk is to safetensors
        raise NumpruneError(f"Writing {target} failed: {error}; nothing was left there.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _permit(path: Path) -> None:
    """Let others read what others may read of this user's files: temporary files are made for their owner alone, and
    so are those of safetensors."""
    for each in [path, *path.rglob("*")]:
        each.chmod((0o777 if each.is_dir() else 0o666) & ~_UMASK)


def check_output(target: str | os.PathLike[str]) -> None:
    """Raise at once what `atomic_folder` would raise, for callers with long work to do before they write."""
    target = Path(target)
    if target.exists() and not replaceable(target):
        raise InputError(f"{target} exists and was not written by numprune; choose another output folder.")
    nearest = next(parent for parent in target.absolute().parents if parent.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise NumpruneError(f"Cannot write beside {target}: {nearest} takes no files; choose another output folder.")


def replaceable(target: Path) -> bool:
    """Whether a folder is empty or an earlier output of ours."""
    return target.is_dir() and ((target / MARKER).is_file() or not any(target.iterdir()))


def replace_folder(partial: Path, target: Path) -> None:
    """Put a finished folder in the place of `target`, which is missing, empty or an earlier output of ours."""
    _permit(partial)
    _swap(partial, target)


def _swap(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = partial.with_suffix(".old")
    target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file beside its target, then rename it there."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file beside its target, then rename it there."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise NumpruneError(f"Cannot write {path}: {error.strerror}; choose another place.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        _permit(Path(name))
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise NumpruneError(
            f"Cannot write {path}: {error.strerror}; free some space or choose another place."
        ) from error


def to_json(value: Any) -> str:
    """JSON text with a trailing newline; NaN and infinity are refused rather than written."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
