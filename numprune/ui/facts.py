"""What is known of an open model, in figures and in a line."""

from __future__ import annotations

from html import escape
from pathlib import Path

from numprune.plan.keys import Kind
from numprune.plan.recipe import CalibrationRecipe
from numprune.ui import html
from numprune.ui.map_data import unit_name
from numprune.ui.records import Loaded


def chip(loaded: Loaded, calibration: CalibrationRecipe) -> str:
    """What is open, in one line; the rest as a tooltip."""
    model = loaded.outline
    parts = [
        html.count(model.parameters),
        f"{model.layers} × {units(loaded, 'attention')} {unit_name(loaded)}s × {units(loaded, 'mlp')} channels",
        f"{model.dtype} {model.device}" if loaded.weights.elsewhere is None else f"{model.dtype}, scores only",
        f"{calibration.samples} × {calibration.sequence_length} {source(calibration.data)}",
    ]
    notes = [*model.notes, *(() if loaded.stats is None else loaded.stats.notes)]
    about = " ".join([f"{model.architecture}, {html.memory(model.bytes)} of weights.", *notes])
    rest = "".join(f"<span> · {escape(part)}</span>" for part in parts)
    return f"<p class='np-chip' title='{escape(about, quote=True)}'><b>{escape(model.name)}</b>{rest}</p>"


def facts(loaded: Loaded, calibration: CalibrationRecipe) -> str:
    """The same in figures, one a card."""
    model, stats = loaded.outline, loaded.stats
    query_heads, unit = model.query_heads, unit_name(loaded)
    heads = units(loaded, "attention")
    items = [
        (model.name, model.architecture),
        (html.count(model.parameters), f"parameters, {html.count(model.prunable_parameters)} prunable"),
        (str(model.layers), "layers"),
        (heads, f"{unit}s{'' if unit == 'head' else f' of {query_heads} query heads'} a layer"),
        (units(loaded, "mlp"), "MLP channels a layer"),
        (html.memory(model.bytes), f"weights, {model.dtype} on {model.device}"),
        (
            f"{calibration.samples} x {calibration.sequence_length}",
            f"calibration tokens ({source(calibration.data)})" + ("" if stats is None else f", {stats.seconds:.1f} s"),
        ),
    ]
    return html.cards(items) + html.notes([*model.notes, *(() if stats is None else stats.notes)])


def source(data: str | None) -> str:
    """What a calibration text is called in a few words."""
    return "own samples" if data == "self" else f"of {Path(str(data)).name}"


def units(loaded: Loaded, kind: Kind) -> str:
    """How many units a layer has, or from how few to how many."""
    counts = {len(module.units) for key, module in loaded.scores.modules.items() if key.kind == kind}
    if not counts:
        return "0"
    low, high = min(counts), max(counts)
    return f"{high:,}" if low == high else f"{low:,}–{high:,}"
