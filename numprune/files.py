"""Writing files and folders so that nothing half-written ever looks complete."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from numprune.errors import InputError, NumpruneError

try:
    import fcntl
except ImportError:  # Windows: what a killed run left stays there
    fcntl = None

MARKER = "numprune.json"
"""File that marks a folder as written by numprune; only such a folder is ever replaced."""

_PARTIAL, _OLD = ".partial", ".old"
"""How the names of what is half-written end, and of what it is about to replace."""

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
        clear_away(target)
        partial, lock = _claimed(
            lambda: Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_PARTIAL, dir=target.parent))
        )
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
        _let_go(lock)


def _claimed(make: Callable[[], Path]) -> tuple[Path, int | None]:
    """What `make` made, and the lock on it, which the system frees however its holder ends; None where the file system
    has no locks."""
    while True:
        made = make()
        lock = _lock(made, wait=True)
        # Between the two, another run may have taken it for one that was left, and cleared it away.
        if made.exists():
            return made, lock
        _let_go(lock)


def _lock(path: Path, *, wait: bool) -> int | None:
    """The lock on a file or folder; None where another process holds it, or where there are no locks."""
    if fcntl is None:
        return None
    lock = None
    try:
        lock = os.open(path, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        _let_go(lock)
        return None
    return lock


def _let_go(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def clear_away(target: str | os.PathLike[str]) -> None:
    """Remove what killed runs left half-written beside `target`; what a living run is writing is locked, and stays.

    An earlier output that a run was killed while replacing goes back to its place.
    """
    target = Path(target)
    left = re.compile(re.escape(f".{target.name}.") + f"[a-z0-9_]{{8}}({re.escape(_PARTIAL)}|{re.escape(_OLD)})")
    try:
        found = sorted(path for path in target.parent.iterdir() if left.fullmatch(path.name))
    except OSError:  # a folder that may not be listed may still be written to
        return
    # An earlier output is judged by the lock on what was to take its place, so it comes first.
    for path in sorted(found, key=lambda path: path.suffix != _OLD):
        partial = path.with_suffix(_PARTIAL)
        lock = _lock(partial, wait=False)
        if lock is None and (partial.exists() or path.suffix != _OLD):
            continue
        with suppress(OSError):
            if path.suffix == _OLD and not target.exists():
                path.rename(target)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        _let_go(lock)


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
    """Whether a folder is empty, an earlier output of ours, or gone by now."""
    while True:
        try:
            before = target.stat().st_ino
            names = [path.name for path in target.iterdir()]
            if not names or MARKER in names:
                return True
            # Another run may have taken this one away, to put its own output there, while it was looked at.
            if target.stat().st_ino == before:
                return False
        except FileNotFoundError:
            return True
        except (NotADirectoryError, PermissionError):
            return False


def replace_folder(partial: Path, target: Path) -> None:
    """Put a finished folder in the place of `target`, which is missing, empty or an earlier output of ours."""
    _permit(partial)
    _swap(partial, target)


def _swap(partial: Path, target: Path) -> None:
    old = partial.with_suffix(_OLD)
    while True:
        try:
            if target.exists():
                check_output(target)
                target.rename(old)
            partial.rename(target)
            break
        except OSError as error:
            # Another run put its own output there, or took the earlier one away, in just this moment.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) and partial.exists():
                shutil.rmtree(old, ignore_errors=True)
                continue
            if old.exists():
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
        clear_away(path)
        partial, lock = _claimed(lambda: _empty_file(path))
    except OSError as error:
        raise NumpruneError(f"Cannot write {path}: {error.strerror}; choose another place.") from error
    try:
        partial.write_bytes(data)
        _permit(partial)
        partial.replace(path)
    except OSError as error:
        raise NumpruneError(
            f"Cannot write {path}: {error.strerror}; free some space or choose another place."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
        _let_go(lock)


def _empty_file(path: Path) -> Path:
    """A file of a name of its own beside `path`."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PARTIAL, dir=path.parent)
    os.close(handle)
    return Path(name)


def to_json(value: Any) -> str:
    """JSON text with a trailing newline; NaN and infinity are refused rather than written."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def from_json(text: str | bytes) -> Any:
    """What JSON text holds.

    Raises:
        ValueError: it is no JSON, nested deeper than Python follows, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except (RecursionError, ValueError) as error:
        raise ValueError("it is nested too deep, or a number in it is too long") from error
