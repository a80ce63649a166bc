"""Reading text: a dataset by name, a file, strings or token ids."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from numprune.calibration.names import DATASETS, Split
from numprune.calibration.rows import RowReader
from numprune.calibration.text_files import ACCEPTED, SEPARATOR, find_files, kind_of, read_file
from numprune.errors import InputError, pip_install

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from numprune.models.model import Model

Data = str | os.PathLike[str] | Sequence[str] | torch.Tensor
HUB_ROWS = 20_000
"""Rows that are read of a dataset on the hub that is named by OWNER/NAME."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def describe(data: Data) -> str:
    """A short name for the recipe and the reports."""
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    return "tokens" if isinstance(data, torch.Tensor) else "texts"


def documents(
    data: str | os.PathLike[str] | Sequence[str],
    split: Split,
    tokenizer: PreTrainedTokenizerBase | None = None,
    column: str | None = None,
) -> list[str]:
    """Texts of `data`: rows of files, parts of a text file between <|endoftext|>, the strings given.

    Files are txt, json, jsonl, csv, tsv or parquet, also compressed with gzip; a folder or a pattern stands for all of
    them in it, or for those named after the split. Rows give the text of a column (`numprune.calibration.rows`).
    Named datasets are one text, joined as in the usual perplexity evaluations (WikiText-2 by blank lines, C4
    and PTB by spaces), except tinystories, whose stories stay apart, as do rows of OWNER/NAME:CONFIG:SPLIT:COLUMN.

    Args:
        tokenizer: whose chat template writes the conversations among the rows.
        column: the column of rows to take; None for the first that is known by its name.

    Raises:
        InputError: when the name, file or text cannot be used.
    """
    if isinstance(data, (str, os.PathLike)):
        name = os.fspath(data)
        named = name in DATASETS
        texts = _dataset(name, split) if named else _files(name, split, RowReader(tokenizer, column))
    else:
        if not isinstance(data, Sequence) or not all(isinstance(text, str) for text in data):
            raise InputError("The text is neither a name nor a list of strings; pass strings or a token tensor.")
        texts, name = data, "The list of texts"
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError(f"{name} holds no text; give at least one sequence's worth.")
    return texts


def token_rows(
    data: Data, tokenizer: PreTrainedTokenizerBase | None, split: Split, column: str | None = None
) -> list[torch.Tensor]:
    """Token ids of every document, 1-D each; each begins as the tokenizer begins a text (BOS where it adds one)."""
    if isinstance(data, torch.Tensor):
        if data.is_floating_point() or data.ndim not in (1, 2) or data.numel() == 0:
            raise InputError(f"Token ids must be integers (tokens,) or (sequences, tokens), not {tuple(data.shape)}.")
        return list(data.long().reshape(1, -1) if data.ndim == 1 else data.long())
    if tokenizer is None:
        raise InputError("This model has no tokenizer; pass token ids as a tensor.")
    rows = tokenizer(documents(data, split, tokenizer, column), verbose=False)["input_ids"]
    return [torch.tensor(row, dtype=torch.long) for row in rows if len(row)]


def text_start(tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """The ids a tokenizer puts before any text: BOS where it adds one, nothing where it does not.

    A model that was trained with them is another one without: its first token takes on the massive activations and
    the attention that BOS has (Sun et al., Massive Activations in Large Language Models, 2024).
    """
    if tokenizer is None:
        return ()
    framed, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    places = (at for at in range(len(framed)) if framed[at : at + len(bare)] == bare)
    return tuple(framed[: next(places, 0)])


def window_start(tokenizer: PreTrainedTokenizerBase | None, data: Data, bos: bool) -> tuple[int, ...]:
    """What every window of some data begins with: `text_start`, or nothing where BOS is not asked for, and before token
    ids, which are taken as they are given."""
    return text_start(tokenizer) if bos and not isinstance(data, torch.Tensor) else ()


def spelled(tokenizer: PreTrainedTokenizerBase | None, start: tuple[int, ...]) -> str:
    """The ids of `text_start` as the tokenizer writes them, such as "<s>"; "" for none."""
    return "".join(tokenizer.convert_ids_to_tokens(list(start))) if tokenizer is not None and start else ""


def check_ids(rows: Iterable[torch.Tensor], model: Model) -> None:
    """Raise InputError when a token id is outside the model's vocabulary."""
    vocabulary = model.module.get_input_embeddings().weight.shape[0]
    lowest, highest = min(int(row.min()) for row in rows), max(int(row.max()) for row in rows)
    if lowest < 0 or highest >= vocabulary:
        raise InputError(f"Token ids run from {lowest} to {highest}; this model knows 0 to {vocabulary - 1}.")


def _dataset(name: str, split: Split) -> list[str]:
    source = DATASETS[name]
    files = {source.splits[split]: source.data_files[split]} if source.data_files else None
    rows = _loaded(
        f"Dataset {name} ({source.path})",
        source.path,
        source.config,
        split=source.splits[split],
        revision=source.revision,
        data_files=files,
    )
    if source.rows:
        rows = rows.select(range(min(source.rows, len(rows))))
    texts = list(rows[source.column])
    return texts if source.joined_by == SEPARATOR else [source.joined_by.join(texts)]


def _loaded(what: str, *names: str | None, **options: Any) -> Any:
    """`datasets.load_dataset`, with what goes wrong in one sentence."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(f"{what} needs the datasets package; run {pip_install('data')}.") from error
    try:
        return load_dataset(*names, **options)
    except Exception as error:  # hub, network and parsing errors come in many types
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        first = first.rstrip(".")
        raise InputError(f"{what} cannot be read: {first}; check the network or give a text file.") from error


def _hub_dataset(name: str, split: Split, read: RowReader) -> list[str]:
    """Rows of a dataset on the hub, OWNER/NAME:CONFIG:SPLIT:COLUMN; what follows the name may be left out or empty."""
    parts = name.split(":")
    path, config, chosen, column = [*parts, *[""] * 3][:4]
    if len(parts) > 4:
        raise InputError(f"'{name[:80]}' has more than OWNER/NAME:CONFIG:SPLIT:COLUMN; leave the rest out.")
    what = f"There is no file or folder {name[:80]} here, and as a dataset of the hub it"
    rows = _loaded(what, path, config or None, split=chosen or split, revision=None, data_files=None)
    rows = rows.select(range(min(HUB_ROWS, len(rows))))
    if column:
        read = RowReader(read.tokenizer, column)
    return [read(row, f"Row {number} of {path}") for number, row in enumerate(rows, 1)]


def _files(name: str, split: Split, read: RowReader) -> list[str]:
    """Texts of a file, folder or pattern, or of a dataset on the hub."""
    files = find_files(name, split)
    if files is not None:
        return [text for file in files for text in read_file(file, read)]
    owner, _, _ = name.partition(":")
    if _HUB_NAME.fullmatch(owner) and kind_of(Path(name)) is None:
        return _hub_dataset(name, split, read)
    known = ", ".join(DATASETS)
    raise InputError(
        f"'{' '.join(name.split())[:80]}' is neither a file nor a dataset name; give a file ({ACCEPTED}), a folder or"
        f" pattern of such files, one of {known}, or OWNER/NAME:CONFIG:SPLIT:COLUMN of the hub."
    )
