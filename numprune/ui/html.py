"""Small pieces of HTML. Every value is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """HTML that `table` takes as it is; its maker escaped what is in it."""


def cards(items: Iterable[tuple[str, str]]) -> str:
    """A row of figures, each a (value, label) pair."""
    parts = (f"<div class='np-card'><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in items)
    return f"<div class='np-cards'>{''.join(parts)}</div>"


def notes(sentences: Iterable[str]) -> str:
    """Small print; nothing when there is none."""
    return "".join(f"<p class='np-notes'>{escape(sentence)}</p>" for sentence in sentences)


def empty(sentence: str) -> str:
    """What stands where a result will be."""
    return f"<div class='np-empty'>{escape(sentence)}</div>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column names the row."""
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in header)
    body = ""
    for name, *cells in rows:
        body += (
            f"<tr><th scope='row'>{_shown(name)}</th>" + "".join(f"<td>{_shown(cell)}</td>" for cell in cells) + "</tr>"
        )
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f"<div class='np-scroll' tabindex='0'><table class='np-table'>{inside}</table></div>"


def _shown(cell: str) -> str:
    return cell if isinstance(cell, Markup) else escape(cell)


def count(number: int) -> str:
    """3935424 -> 3.94 M."""
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return str(number)


def memory(size: int) -> str:
    """Bytes in MB or GB (powers of ten)."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"
