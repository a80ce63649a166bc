"""A page of pictures that a command leaves beside its table."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


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
