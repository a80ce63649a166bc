"""Writing files and folders so that nothing half-written ever looks complete."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from numprune.errors import InputError, NumpruneError

MARKER = "numprune.json"
"""File that marks a folder as written by numprune; only such a folder is ever replaced."""


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
        _open_to_others(partial)
        _swap(partial, target)


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
        partial.chmod(_new_file_mode(folder))
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


def _new_file_mode(folder: Path) -> int:
    """The mode of a file that a person would make in a folder. A file is made to see it: a process can read its umask
    only by changing it, for all its threads."""
    probe = folder / ".mode"
    probe.touch()
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


def _open_to_others(folder: Path) -> None:
    """Give a folder and all in it the modes they would have without a temporary place: `tempfile`, and safetensors when
    it saves, make what only their owner may read."""
    mode = _new_file_mode(folder)
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        # Who may read a folder may also enter it.
        path.chmod(mode | (mode & 0o444) >> 2 if path.is_dir() else mode)


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
        # Private, as the temporary file is, only where an ordinary file would be.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            Path(name).chmod(_new_file_mode(Path(folder)))
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise NumpruneError(
            f"Cannot write {path}: {error.strerror}; free some space or choose another place."
        ) from error


def to_json(value: Any) -> str:
    """JSON text with a trailing newline; NaN and infinity are refused rather than written."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
