"""Methods side by side: the picture and the table of measured cells, and the recipe behind each. Knows no gradio."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numprune.errors import InputError
from numprune.evaluation.cells import DENSE, EXCESS_LOSS, JUDGE_DISTANCE, Cell, summary
from numprune.plan.presets import METHODS, preset
from numprune.plan.recipe import Recipe
from numprune.ui import engine, html
from numprune.ui.figures import methods_chart
from numprune.ui.records import Point

if TYPE_CHECKING:
    from numprune.models import Model


JS = (Path(__file__).parent / "cells.js").read_text(encoding="utf8")
COMMON = ("damping", "scarcity", "round_heads", "round_channels", "allow_empty")
"""Values of a recipe that all methods of a comparison share."""
MOST_SEEDS = 10


def seeds_of(text: str) -> list[int]:
    """The whole numbers of the seed box, as they stand there.

    Raises:
        InputError: there is none, there are too many, or one is no whole number.
    """
    parts = text.replace(",", " ").replace(";", " ").split()
    if not all(part.isdecimal() for part in parts) or not 1 <= len(parts) <= MOST_SEEDS:
        raise InputError(f"The seeds are '{text}'; give 1 to {MOST_SEEDS} whole numbers, such as 0 1 2.")
    return list(dict.fromkeys(map(int, parts)))


def one_run(cells: Sequence[Cell]) -> list[Cell]:
    """Cells that can be shown together.

    Raises:
        InputError: there is none, or they are of several runs.
    """
    if len({cell.run for cell in cells}) != 1:
        raise InputError("The file holds no cells, or cells of several runs; open one that a single run wrote.")
    return list(cells)


def recipe_of(method: str, ratio: float, own: Recipe) -> Recipe | None:
    """What a cell was pruned by, with the calibration and the common settings of a recipe; None where no such method
    is known, or its ratios come from the model's own loss and are not part of it."""
    if method not in METHODS or preset(method).suggests:
        return None
    return preset(method).applied(_plain(own)).replace(ratio=ratio)


def edits_of(method: str, ratio: float, own: Recipe) -> list[dict[str, Any]]:
    """The edits that bring a cell's recipe onto the page; none where no such method is known."""
    recipe = recipe_of(method, ratio, own)
    if recipe is not None:
        return [{"kind": "recipe", "recipe": recipe.to_dict()}]
    if method in METHODS:
        return [{"kind": "ratio", "ratio": ratio}, {"kind": "method", "method": method}]
    return []


def _plain(own: Recipe) -> Recipe:
    """A recipe's model and calibration, and what all methods share, without any decision of its own."""
    kept = {name: getattr(own, name) for name in (*COMMON, "model", "fingerprint", "calibration")}
    return Recipe(**kept)


def points_of(cells: Sequence[Cell], own: Recipe) -> list[Point]:
    """The measured losses of language models, for the frontier: the mean over the seeds."""
    if all(cell.nll is None for cell in cells) or not any(cell.method == DENSE for cell in cells):
        return []
    reached = {(cell.method, cell.ratio): cell.reached for cell in cells}
    return [
        Point(
            f"{row.ratio:.0%} {row.method}, among methods",
            reached[row.method, row.ratio],
            row.measure,
            recipe_of(row.method, row.ratio, own),
        )
        for row in summary(cells).itertuples()
        if not math.isnan(row.measure)
    ]


def cells_chart(cells: Sequence[Cell], model: Model | None = None) -> Any:
    """The picture of all cells; None while there is only the dense model.

    Args:
        model: the one on the page. Where the cells are its own and the paper has curves of it, they are there too.
    """
    if all(cell.method == DENSE for cell in cells):
        return None
    if cells[0].perplexity is None:
        return methods_chart(summary(cells), JUDGE_DISTANCE)
    curves = engine.curves_for(model, cells[0].data) if model is not None and model.name == cells[0].model else None
    if curves is None:
        return methods_chart(summary(cells), EXCESS_LOSS)
    figure = methods_chart(summary(cells), EXCESS_LOSS, paper=curves.table)
    figure.update_layout(title={"text": curves.caption, "font": {"size": 13}}, margin={"t": 80})
    return figure


def cells_table(cells: Sequence[Cell], own: Recipe | None = None) -> str:
    """The table twin of the chart, and how the cells were measured.

    Args:
        own: the recipe of the page, when the cells are of its model: a click on a method then opens its recipe.
    """
    dense, first = next((cell for cell in cells if cell.method == DENSE), None), cells[0]
    images = first.perplexity is None
    columns = {
        "Parameters": lambda row: f"{row.parameters:,}",
        "Fréchet distance" if images else "Excess loss, nats a token": _loss,
        "KL(dense, pruned)": lambda row: _known(row.kl, ".4f"),
        "Recognised": lambda row: _known(row.recognised, ".1%"),
        "Seconds to prune": lambda row: _known(row.seconds, ".1f"),
        "Decode, tokens/s": lambda row: _known(row.decode, ".1f"),
    }
    found = list(summary(cells).itertuples())
    filled = {name: values for name, how in columns.items() if any(values := [how(row) for row in found])}
    names = [(_opener(row.method, row.ratio, own), f"{row.ratio:.0%}") for row in found]
    rows = [(*name, *values) for name, *values in zip(names, *filled.values(), strict=True)]
    seeds = sorted({cell.seed for cell in cells if cell.method != DENSE})
    note = f"{first.model} on {first.device}, {first.threads} {'thread' if first.threads == 1 else 'threads'}. "
    if dense is not None:
        quality = (
            f"{JUDGE_DISTANCE} {dense.fid:.4f} over {dense.images:,} images"
            if images
            else f"perplexity {dense.perplexity:.3f} over {dense.tokens:,} tokens"
        )
        note += f"Dense model: {dense.parameters:,} parameters, {quality}. "
    note += f"Mean (lowest to highest) over calibration seeds {', '.join(map(str, seeds))}." if seeds else ""
    return html.table(["Method", "Ratio", *filled], rows) + html.notes([note])


def _opener(method: str, ratio: float, own: Recipe | None) -> str:
    """The name of a method, as a button where its recipe can be opened."""
    edits = [] if own is None else edits_of(method, ratio, own)
    if not edits:
        return method
    label = f"Open the recipe of {method} at {ratio:.0%}"
    return html.Markup(
        f"<button type='button' class='np-link' title='{escape(label)}' aria-label='{escape(label)}'"
        f" data-edits='{escape(json.dumps(edits, separators=(',', ':')))}'>{escape(method)}</button>"
    )


def _loss(row: Any) -> str:
    """A row's measure, with its spread where there are several seeds."""
    return f"{row.measure:.4f}" + (f" ({row.lowest:.4f} to {row.highest:.4f})" if row.seeds > 1 else "")


def _known(value: float, how: str) -> str:
    return "" if math.isnan(value) else format(value, how)
