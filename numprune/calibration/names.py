"""What a calibration text can be called: the public datasets, the model's own samples, and several in turn."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from numprune.calibration.text_files import SEPARATOR, find_files
from numprune.errors import InputError

Split = Literal["train", "test"]
SELF = "self"
"""The model's own samples."""


@dataclass(frozen=True)
class DatasetSource:
    """A public dataset: where it is, the splits, and how the usual evaluation joins its rows."""

    path: str
    config: str | None
    column: str
    splits: dict[Split, str]
    joined_by: str
    rows: int | None = None
    revision: str | None = None
    data_files: dict[Split, str] | None = None


DATASETS: dict[str, DatasetSource] = {
    "wikitext2": DatasetSource(
        "Salesforce/wikitext", "wikitext-2-raw-v1", "text", {"train": "train", "test": "test"}, "\n\n"
    ),
    "c4": DatasetSource(
        "allenai/c4",
        None,
        "text",
        {"train": "train", "test": "validation"},
        " ",
        rows=1100,
        data_files={"train": "en/c4-train.00000-of-01024.json.gz", "test": "en/c4-validation.00000-of-00008.json.gz"},
    ),
    # The dataset's own loading script no longer runs; the hub keeps a Parquet conversion.
    "ptb": DatasetSource(
        "ptb-text-only/ptb_text_only",
        None,
        "sentence",
        {"train": "train", "test": "test"},
        " ",
        revision="refs/convert/parquet",
    ),
    "tinystories": DatasetSource(
        "roneneldan/TinyStories", None, "text", {"train": "train", "test": "validation"}, SEPARATOR, rows=20000
    ),
}


def parse_sources(data: str | os.PathLike[str]) -> dict[str, float]:
    """The sources a name stands for, by their weights: "c4,wikitext2,self", or "c4=2,wikitext2=1".

    A name that is a file or dataset as it stands is one source, commas and all.

    Raises:
        InputError: a source has no name, is there twice, or its weight is not a positive number.
    """
    text = os.fspath(data)
    if text == SELF or text in DATASETS or _is_files(text) or not ("," in text or "=" in text):
        return {text: 1.0}
    sources: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = (part if "=" in part else f"{part}=1").rpartition("=")
        name = name.strip()
        try:
            share = float(weight)
        except ValueError:
            share = math.nan
        if not name or name in sources or not (math.isfinite(share) and share > 0):
            raise InputError(
                f"'{part.strip()}' in the calibration '{text[:80]}' is no source of its own; write names with commas"
                " between them, each once, and weights such as c4=2,wikitext2=1."
            )
        sources[name] = share
    return sources


def _is_files(text: str) -> bool:
    """Whether a name, commas and all, is that of a file or folder or matches some."""
    try:
        return find_files(text, "train") is not None
    except InputError:  # a folder or a pattern without text, which is said where it is read
        return Path(text).expanduser().is_dir()


def cache_folder() -> Path:
    """Where samples are kept: $NUMPRUNE_CACHE, or numprune inside the user's cache folder."""
    chosen = os.environ.get("NUMPRUNE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numprune"
