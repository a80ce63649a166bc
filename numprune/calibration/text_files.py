"""Reading files of text: plain, JSON, JSON lines, CSV, TSV and Parquet, any of them compressed with gzip."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numprune.errors import InputError, pip_install
from numprune.files import from_json

SEPARATOR = "<|endoftext|>"
_TEXT, _JSON, _LINES, _TABLE, _PARQUET = "text", "JSON", "JSON lines", "table", "Parquet"
KINDS = {
    ".txt": _TEXT,
    ".text": _TEXT,
    ".md": _TEXT,
    ".json": _JSON,
    ".jsonl": _LINES,
    ".ndjson": _LINES,
    ".csv": _TABLE,
    ".tsv": _TABLE,
    ".parquet": _PARQUET,
}
"""What a suffix, in any case and before .gz, says of a file."""
ACCEPTED = "txt, json, jsonl, csv, tsv or parquet, each also as .gz"
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files in folders of datasets that hold no rows."""
_MAGIC = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive or an Office document",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"GGUF": "a GGUF model",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"\x80\x02": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x7fELF": "a program",
    b"\x93NUMPY": "a NumPy array",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"{\\rtf": "a Rich Text document",
}


def find_files(name: str, split: str) -> list[Path] | None:
    """The files a name stands for: a file, those of text in a folder, or those a pattern matches; None for none.

    Of files named after splits, such as train-00000.parquet beside test.parquet, those of `split` alone are taken.

    Raises:
        InputError: a folder or pattern has no file of text.
    """
    try:
        path = Path(name).expanduser()
        if not name.strip() or not (path.exists() or re.search(r"[*?\[]", name)):
            return None
        if path.is_file():
            return [path]
        base = Path(path.anchor) if path.is_absolute() else Path()
        found = [path] if path.is_dir() else sorted(base.glob(str(path.relative_to(path.anchor))))
    except (OSError, RuntimeError, ValueError):  # longer than a path can be, or the home of an unknown user
        return None
    if found == [path]:
        return _of_split(_in_folder(path, name), split)
    files = [file for file in found if file.is_file() and file.name not in _DESCRIPTIONS]
    files = [file for file in files if not file.name.startswith(".")]
    if not files:
        raise InputError(f"No file matches {name}; check the pattern.")
    return _of_split(files, split)


def kind_of(path: Path) -> str | None:
    """What the suffix of a file says it is; None for one that is not known."""
    name = path.name.lower().removesuffix(".gz")
    return KINDS.get(Path(name).suffix)


def _in_folder(folder: Path, name: str) -> list[Path]:
    found = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    files = [file for file in found if kind_of(file) and file.name not in _DESCRIPTIONS]
    if files:
        return files
    if any(file.suffix == ".arrow" for file in found):
        raise InputError(
            f"Folder {name} was written by save_to_disk of datasets (Arrow files); write it with to_parquet or to_json."
        )
    there = f"; it has {', '.join(file.name for file in found[:3])}" if found else ", and no file at all"
    raise InputError(f"Folder {name} has no file of text ({ACCEPTED}){there}.")


def _of_split(files: list[Path], split: str) -> list[Path]:
    named = {"train": ("train",), "test": ("test", "validation", "valid", "val", "dev")}[split]
    every = ("train", "test", "validation", "valid", "val", "dev")
    words = {file: set(re.split(r"[^a-z]+", file.name.lower())) for file in files}
    if len(files) < 2 or not all(words[file] & set(every) for file in files):
        return files
    chosen = next(([file for file in files if name in words[file]] for name in named if _any(words, name)), None)
    return chosen or files


def _any(words: dict[Path, set[str]], name: str) -> bool:
    return any(name in each for each in words.values())


def read_file(path: Path, to_text: Callable[[Any, str], str]) -> list[str]:
    """The texts of one file: parts between <|endoftext|> of a plain one, the rows of any other.

    Args:
        to_text: makes the text of a row, given the row and what to call it in an error.

    Raises:
        InputError: it cannot be read, is damaged, or is no text; what it looks like is named.
    """
    data = _bytes(path)
    kind = kind_of(path)
    if data[:4] == b"PAR1":
        kind = _PARQUET
    elif kind == _PARQUET:
        raise InputError(f"{path} is no Parquet file, whatever its name ({looks_like(data)}); choose another file.")
    if kind == _PARQUET:
        return [to_text(row, f"Row {number} of {path}") for number, row in enumerate(_parquet(data, path), 1)]
    text = _decoded(data, path)
    if kind in (_TEXT, None):
        _check_plain(text, path)
        return text.split(SEPARATOR)
    if kind == _TABLE:
        rows = _table(text, path)
    else:
        rows = _json(text, path, lines=kind == _LINES)
    return [to_text(row, where) for where, row in rows]


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); choose another file.") from error
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is a damaged gzip file ({error}); download it again.") from error


def looks_like(data: bytes) -> str:
    """What a file that is no text looks like, by what it begins with."""
    for magic, what in _MAGIC.items():
        if data.startswith(magic):
            return f"it looks like {what}"
    if data[257:262] == b"ustar":
        return "it looks like a tar archive"
    if data[8:9] == b"{" and b"\0" in data[:8]:
        return "it looks like a safetensors file"
    return "it is not UTF-8 text" if data else "it is empty"


def _decoded(data: bytes, path: Path) -> str:
    """The text of a file without its byte order mark and with one kind of line end."""
    looks = looks_like(data)
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as text ({looks}); give {ACCEPTED}, in UTF-8.") from error
    if "\0" in text or "looks like" in looks:
        raise InputError(f"{path} cannot be read as text ({looks}); give {ACCEPTED}, in UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _check_plain(text: str, path: Path) -> None:
    """Refuse what is no plain text, though it consists of characters: it would be calibrated on its markup."""
    begin = text.lstrip()[:2000].lower()
    if begin.startswith(("<!doctype html", "<html", "<?xml")):
        raise InputError(f"{path} looks like HTML or XML; take the text out of it, or give {ACCEPTED}.")
    if begin.startswith(("{", "[")):
        first = text.lstrip().split("\n", 1)[0]
        for part, suffix in ((first, ".jsonl"), (text, ".json")):
            try:
                value = from_json(part)
            except ValueError:
                continue
            if value and isinstance(value, dict | list):
                raise InputError(f"{path} looks like JSON; give its name the suffix {suffix} to read its rows.")


def _json(text: str, path: Path, *, lines: bool) -> Iterator[tuple[str, Any]]:
    """The rows of a JSON file, each with what to call it."""
    if not lines:
        try:
            rows = _rows_of(from_json(text), path) if text.strip() else []
        except ValueError as error:
            if "\n" not in text.strip() or not _is_json(text.lstrip().split("\n", 1)[0]):
                raise InputError(f"{path} is not JSON ({error}); mend it or choose another file.") from error
            lines = True
        else:
            yield from ((f"Row {number} of {path}", row) for number, row in enumerate(rows, 1))
    if not lines:
        return
    # Not splitlines: JSON strings may hold characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = from_json(line)
        except ValueError as error:
            raise InputError(f"Line {number} of {path} is not JSON ({error}); mend it.") from error
        yield f"Line {number} of {path}", row


def _is_json(text: str) -> bool:
    try:
        from_json(text)
    except ValueError:
        return False
    return True


def _rows_of(value: Any, path: Path) -> list[Any]:
    """The rows in a JSON document: a list, the only list of an object, columns of one length, or one object."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}, not rows; give a JSON list of objects or strings.")
    lists = {key: each for key, each in value.items() if isinstance(each, list)}
    chats = ("messages", "conversations", "conversation", "chat")
    if not lists or any(key in chats for key in lists):
        return [value]
    if len(lists) == len(value) and len({len(each) for each in lists.values()}) == 1:
        if len(lists) == 1 and all(isinstance(row, dict) for row in next(iter(lists.values()))):
            return next(iter(lists.values()))
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    return next(iter(lists.values())) if len(lists) == 1 else [value]


def _table(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV or TSV file with a line of names."""
    import pandas as pd

    if not text.strip():
        return
    head = text.lstrip("\n").split("\n", 1)[0]
    separator = "\t" if ".tsv" in path.name.lower() else ";" if ";" in head and "," not in head else ","
    try:
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, pd.errors.ParserError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"{path} is not a table with a line of names ({reason}); mend it.") from error
    for number, row in enumerate(table.to_dict("records"), 1):
        yield f"Row {number} of {path}", row


def _parquet(data: bytes, path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise InputError(f"Parquet files need pyarrow ({error}); run {pip_install('data')}.") from error
    try:
        return read_table(io.BytesIO(data)).to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"{path} is a damaged Parquet file ({reason}); download it again.") from error
