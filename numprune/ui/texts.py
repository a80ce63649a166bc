"""Generated texts side by side, with where they leave the dense model's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape
from itertools import pairwise, takewhile
from typing import Literal

MOST_WORDS = 300
"""Words compared behind the first difference. Texts that went apart long ago have nothing left to line up, and a
page is redrawn after every token."""
HALF_A_CHARACTER = "\ufffd"
"""What a text ends with while a token of a longer character is still to come."""

CSS = """
.np-texts { display: grid; gap: .6rem; }
.np-texts > div { display: grid; grid-template-columns: repeat(var(--n, 2), minmax(0, 1fr)); gap: .6rem; }
@media (max-width: 640px) { .np-texts > div { grid-template-columns: 1fr; } }
.np-text { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .6rem .75rem;
  background: var(--background-fill-secondary); color: var(--body-text-color); min-width: 0; }
.np-text header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 .6rem; margin-bottom: .35rem;
  font-size: .85rem; color: var(--body-text-color-subdued); }
.np-text h3 { margin: 0; font-size: .95rem; font-weight: 600; color: var(--body-text-color);
  overflow-wrap: anywhere; }
.np-text small { font-size: .85rem; font-weight: 400; color: var(--body-text-color-subdued); }
.np-text p { margin: 0; line-height: 1.55; white-space: pre-wrap; overflow-wrap: anywhere; }
.np-text .np-prompt { color: var(--body-text-color-subdued); }
.np-text mark { color: inherit; background: rgba(199, 115, 40, .2); border-radius: 2px;
  text-decoration: underline 1.5px #c77328; text-underline-offset: .2em; }
.np-text .np-parting { display: inline-block; padding: 0 .3em; margin-right: .25em; border-radius: 4px;
  font-size: .85em; font-weight: 700; line-height: 1.35; color: #fff; background: #9a4f12; cursor: help;
  print-color-adjust: exact; }
"""
_MEANING = "First difference from the dense model"
PARTING = f"<span class='np-parting' role='img' title='{_MEANING}' aria-label='{_MEANING}'>≠</span>"


@dataclass(frozen=True)
class Span:
    """A stretch of a text: its words are also in the dense model's text, or they are not."""

    text: str
    kind: Literal["same", "different"]


def divergence_point(dense: str, other: str) -> int | None:
    """Where the word begins at which two texts part.

    Returns:
        The index of a character, the same in both texts; None while one text is a beginning of the other, since
        the shorter one may still be growing.
    """
    dense, other = dense.rstrip(HALF_A_CHARACTER), other.rstrip(HALF_A_CHARACTER)
    pairs = zip(dense, other, strict=False)
    index = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if index == min(len(dense), len(other)):
        return None
    if dense[index].isspace() and other[index].isspace():
        return index
    while index and not dense[index - 1].isspace():
        index -= 1
    return index


def spans(dense: str, other: str) -> list[Span]:
    """`other` in stretches of words that are the same as, or different from, the dense model's; joined, they are
    `other`."""
    point = divergence_point(dense, other)
    if point is None:
        return [Span(other, "same")] if other else []
    words = list(re.finditer(r"\S+", other[point:]))
    theirs = dense[point:].split()[:MOST_WORDS]
    matcher = SequenceMatcher(None, theirs, [word.group() for word in words[:MOST_WORDS]], autojunk=False)
    # Bounds of the stretches, same and different by turns.
    ends = [0]
    for tag, _, _, first, last in matcher.get_opcodes():
        if tag in ("replace", "insert"):
            ends += [point + words[first].start(), point + words[last - 1].end()]
    if len(words) > MOST_WORDS:
        ends += [point + words[MOST_WORDS].start(), point + words[-1].end()]
    found = (
        Span(other[start:end], "different" if turn % 2 else "same")
        for turn, (start, end) in enumerate(pairwise([*ends, len(other)]))
    )
    return [span for span in found if span.text]


def side_by_side(
    prompts: Sequence[str], columns: Sequence[tuple[str, Sequence[str]]], heads: Mapping[str, str] | None = None
) -> str:
    """One row per prompt, one cell per model; where the page is narrow, the cells stand below each other.

    Args:
        columns: (name, texts) of every model, the dense one first. A text is the prompt and its continuation.
        heads: HTML that stands beside a model's name in the first row.
    """
    rows = ""
    for number, prompt in enumerate(prompts):
        dense = columns[0][1][number]
        cells = (
            _cell(
                name,
                texts[number],
                dense if column else None,
                prompt,
                number + 1 if len(prompts) > 1 else None,
                "" if number or heads is None else heads.get(name, ""),
            )
            for column, (name, texts) in enumerate(columns)
        )
        rows += f"<div>{''.join(cells)}</div>"
    return f"<div class='np-texts' style='--n:{len(columns)}'>{rows}</div>"


def _cell(name: str, text: str, dense: str | None, prompt: str, number: int | None, head: str) -> str:
    """One model's text; `dense` is None for the dense model itself."""
    start = len(prompt) if text.startswith(prompt) else 0
    body, note = escape(text[start:]), ""
    if dense is not None and len(text) > start:
        point = divergence_point(dense, text)
        if point is not None:
            body = _parted(dense, text, start, max(point, start))
        else:
            note = f"<span>same as dense{'' if text == dense else ' so far'}</span>"
    which = "" if number is None else f"prompt {number}"
    label = escape(", ".join(filter(None, (name, which))))
    return (
        f"<article class='np-text' aria-label='{label}'><header><h3>{escape(name)} <small>{which}</small></h3>"
        f"{head}{note}</header>"
        f"<p tabindex='0'><span class='np-prompt'>{escape(text[:start])}</span>{body}</p></article>"
    )


def _parted(dense: str, text: str, start: int, point: int) -> str:
    """The continuation with a sign where the texts part, and every different stretch marked behind it."""
    behind = "".join(
        f"<mark>{escape(span.text)}</mark>" if span.kind == "different" else escape(span.text)
        for span in spans(dense[point:], text[point:])
    )
    return f"{escape(text[start:point])}{PARTING}{behind}"
