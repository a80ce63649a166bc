"""The folder `numprune.load` opens with all it knows: recipe, report, and an image model's tokenizer and judge."""

from __future__ import annotations

from pathlib import Path

from numprune.errors import CancelEvent, Progress
from numprune.models.model import Model


def refusal(model: Model) -> str | None:
    """None: every model can be written so."""
    return None


def write(model: Model, folder: Path, *, progress: Progress | None, cancel: CancelEvent | None) -> list[str]:
    """Write what `Model.save` writes."""
    model.save(folder)
    return []


def snippet(model: Model, path: Path) -> str:
    return f'import numprune\n\nmodel = numprune.load("{path}")'
