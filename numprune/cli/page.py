"""What `numprune reproduce` leaves of a model: a page of pictures beside its table, and the result as JSON."""

from __future__ import annotations

import time
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numprune.cli.console import json_rows
from numprune.cli.options import describe

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure

    from numprune import Model
    from numprune.evaluation.paper import PaperModel


def html_page(title: str, notes: list[str], figures: list[Figure]) -> str:
    """One self-contained page."""
    config = {"responsive": True, "displaylogo": False}
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0, config=config)
        for index, figure in enumerate(figures)
    ]
    paragraphs = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title></head>'
        f'<body style="font-family: sans-serif"><h1>{escape(title)}</h1>{"".join(parts)}{paragraphs}</body></html>'
    )


def result_of(
    model: Model,
    title: str,
    paper: PaperModel | None,
    notes: list[str],
    table: DataFrame,
    files: dict[str, Path],
    began: float,
) -> dict[str, Any]:
    """What the command prints as JSON.

    Args:
        paper: the model in the paper; None when it is not among the paper's.
        files: what was written, by name.
        began: the monotonic clock when the work began.
    """
    return {
        **describe(model),
        "title": title,
        "paper_model": paper.name if paper else None,
        "notes": notes,
        "rows": json_rows(table),
        **{name: str(file) for name, file in files.items()},
        "seconds": time.monotonic() - began,
    }
