"""Reading text: a dataset by name, a file, strings or token ids."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from numprune.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from numprune.models.model import Model

Split = Literal["train", "test"]
Data = str | os.PathLike[str] | Sequence[str] | torch.Tensor
SEPARATOR = "<|endoftext|>"


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


def describe(data: Data) -> str:
    """A short name for the recipe and the reports."""
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    return "tokens" if isinstance(data, torch.Tensor) else "texts"


def documents(data: str | os.PathLike[str] | Sequence[str], split: Split) -> list[str]:
    """Texts of `data`: rows of a .jsonl file, parts of a text file between <|endoftext|>, the strings given.

    Named datasets are one text, joined as in the usual perplexity evaluations (WikiText-2 by blank lines, C4
    and PTB by spaces), except tinystories, whose stories stay apart.

    Raises:
        InputError: when the name, file or text cannot be used.
    """
    if isinstance(data, (str, os.PathLike)):
        name = os.fspath(data)
        texts = _dataset(name, split) if name in DATASETS else _file(name)
    else:
        if not isinstance(data, Sequence) or not all(isinstance(text, str) for text in data):
            raise InputError("The text is neither a name nor a list of strings; pass strings or a token tensor.")
        texts, name = data, "The list of texts"
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError(f"{name} holds no text; give at least one sequence's worth.")
    return texts


def token_rows(data: Data, tokenizer: PreTrainedTokenizerBase | None, split: Split) -> list[torch.Tensor]:
    """Token ids of every document, 1-D each; each begins as the tokenizer begins a text (BOS where it adds one)."""
    if isinstance(data, torch.Tensor):
        if data.is_floating_point() or data.ndim not in (1, 2) or data.numel() == 0:
            raise InputError(f"Token ids must be integers (tokens,) or (sequences, tokens), not {tuple(data.shape)}.")
        return list(data.long().reshape(1, -1) if data.ndim == 1 else data.long())
    if tokenizer is None:
        raise InputError("This model has no tokenizer; pass token ids as a tensor.")
    rows = tokenizer(documents(data, split), verbose=False)["input_ids"]
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
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(f"Dataset {name} needs the datasets package; run pip install 'numprune[data]'.") from error
    try:
        files = {source.splits[split]: source.data_files[split]} if source.data_files else None
        rows = load_dataset(
            source.path, source.config, split=source.splits[split], revision=source.revision, data_files=files
        )
        if source.rows:
            rows = rows.select(range(min(source.rows, len(rows))))
        texts = list(rows[source.column])
    except Exception as error:  # hub, network and parsing errors come in many types
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"Dataset {name} ({source.path}) cannot be read: {first}; check the network or give a text file."
        ) from error
    return texts if source.joined_by == SEPARATOR else [source.joined_by.join(texts)]


def _file(name: str) -> list[str]:
    try:
        path = Path(name).expanduser()
        exists = path.is_file()
    except (OSError, RuntimeError):  # longer than a path can be, or the home of an unknown user
        exists = False
    if not exists:
        known = ", ".join(DATASETS)
        raise InputError(
            f"'{name[:80]}' is neither a file nor a dataset name; give a text or jsonl file, or one of {known}."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text; convert it or choose another file.") from error
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}); choose another file.") from error
    if path.suffix != ".jsonl":
        return text.split(SEPARATOR)
    texts = []
    # Not splitlines: JSON strings may hold characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise InputError(f"Line {number} of {name} is not a JSON object with a 'text' that is a string; mend it.")
        texts.append(text)
    return texts
