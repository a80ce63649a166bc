"""What the page draws of scores and of a plan, as small as it can be: the scores once, the plan at every step.

Scores travel as one byte a cell for colour and two for the tooltip; a plan as a bit for each head and a count for each
layer's channels, so that a step of a drag takes 2 kB where the model has 32 layers of 11,008 channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from numprune.plan.keys import KINDS, Kind, ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.plan.presets import method_of
from numprune.ui.heatmap import MISSING, SHADES, Order, Rows, Scale, binned, encoded, mean_of, quantised, ranks
from numprune.ui.records import Loaded
from numprune.ui.session import Look

MOST_FORCED = 64
"""Forced units of a module that are marked on the map."""
STRIP = 512
"""Columns of the strips that show, below channels in the model's order, which ones go."""
CONTEXT = 1000
"""Tokens in the cache, for the figures per token."""


def rows_of(loaded: Loaded, plan: PruningPlan, kind: Kind) -> Rows:
    """Scores, and whether the plan prunes them, layer by layer."""
    scores: list[np.ndarray | None] = []
    pruned: list[np.ndarray | None] = []
    for layer in range(loaded.outline.layers):
        module = loaded.scores.modules.get(ModuleKey(layer, kind))
        scores.append(None if module is None else module.units)
        pruned.append(None if module is None else plan.removed(ModuleKey(layer, kind)))
    return Rows(scores, pruned, unit_name(loaded) if kind == "attention" else "channel")


def unit_name(loaded: Loaded) -> str:
    """What one attention unit of the model is called."""
    return loaded.outline.unit


def scores_data(loaded: Loaded, look: Look) -> dict[str, Any]:
    """The scores of the map: a grid for heads in their order, one for channels by score or by index."""
    layers = loaded.outline.layers
    modules = {kind: [loaded.scores.modules.get(ModuleKey(layer, kind)) for layer in range(layers)] for kind in KINDS}
    parts = {kind: [None if each is None else each.units for each in row] for kind, row in modules.items()}
    empty = [None] * layers
    everything = [Rows(scores, empty, "") for scores in parts.values()]
    scale = Scale.of(everything, look.view, None)
    grids = {
        "attention": _grid(everything[0], scale, "index"),
        "mlp": _grid(everything[1], scale, look.order),
    }
    return {
        "layers": layers,
        "unit": unit_name(loaded),
        "order": look.order,
        "scorer": loaded.scores.scorer,
        "scale": {"view": scale.view, "low": scale.low, "high": scale.high, "bend": scale.bend},
        "units": {kind: [0 if row is None else len(row) for row in rows] for kind, rows in parts.items()},
        "influence": [round(each, 5) for each in loaded.scores.influence],
        "grids": grids,
    }


def _grid(rows: Rows, scale: Scale, order: Order) -> dict[str, Any]:
    """Colours and values of one kind of module, at most 1024 columns a layer."""
    bins = rows.bins
    colours, values = (np.full((len(rows.scores), bins), np.nan) for _ in range(2))
    for layer, scores in enumerate(rows.scores):
        if scores is None or not len(scores):
            continue
        span = rows.span(layer, order)
        arranged = np.sort(scores) if order == "sorted" else scores
        shown = ranks(scores) if scale.view == "rank" else scores
        shown = np.sort(shown) if order == "sorted" else shown
        colours[layer] = binned(shown, bins, span, mean_of)
        values[layer] = binned(arranged, bins, span, mean_of)
    shade = np.rint(np.nan_to_num(scale.fraction(colours)) * (SHADES - 1))
    cells = np.where(np.isnan(colours), MISSING, shade).astype(np.uint8)
    return {"bins": bins, "widest": rows.widest, "cells": encoded(cells), "values": quantised(values)}


def plan_data(loaded: Loaded, plan: PruningPlan, look: Look) -> dict[str, Any]:
    """The plan as the map, the table of layers and the rail draw it."""
    recipe, layers = plan.recipe, range(loaded.outline.layers)
    data: dict[str, Any] = {
        "gone": {
            kind: [plan.units[key] - len(plan.keep[key]) if key in plan.keep else 0 for key in keys]
            for kind in KINDS
            for keys in [[ModuleKey(layer, kind) for layer in layers]]
        },
        "unit": unit_name(loaded),
        "units": {kind: [plan.units.get(ModuleKey(layer, kind), 0) for layer in layers] for kind in KINDS},
        "heads": [_bits(plan, ModuleKey(layer, "attention")) for layer in layers],
        "locks": sorted(map(str, recipe.ratios)),
        "dropped": sorted(map(str, recipe.drop)),
        "forced": _forced(recipe.keep, "keep") | _forced(recipe.prune, "prune"),
        "cut": None if plan.threshold is None else float(plan.threshold),
        "ratio": recipe.ratio,
        "method": method_of(recipe),
        "reached": float(plan.ratio_reached),
        "notes": plan.remarks,
        **budget(loaded, plan),
    }
    if look.order == "index":
        rows = rows_of(loaded, plan, "mlp")
        data["strips"] = [_strip(rows, layer) for layer in layers]
    return data


def budget(loaded: Loaded, plan: PruningPlan) -> dict[str, Any]:
    """What would be left, exact to the parameter."""
    before, after = (loaded.outline.sizes(each, context=CONTEXT) for each in (None, plan))
    return {
        "before": {**before.to_dict(), "kv": before.kv_bytes * 1000},
        "after": {**after.to_dict(), "kv": after.kv_bytes * 1000},
    }


def _bits(plan: PruningPlan, key: ModuleKey) -> str:
    """A bit for every unit, 1 where it goes."""
    return encoded(np.packbits(plan.removed(key))) if key in plan.keep else ""


def _forced(units: Mapping[ModuleKey, tuple[int, ...]], how: str) -> dict[str, str]:
    """Units that stay or go by hand, by name; of a module with very many only the first."""
    return {f"{key}.{unit}": how for key, chosen in units.items() for unit in chosen[:MOST_FORCED]}


def _strip(rows: Rows, layer: int) -> str:
    """For channels in the model's order: a bit a column, 1 where at least half of its channels go."""
    pruned = rows.pruned[layer]
    if pruned is None:
        return ""
    share = binned(pruned.astype(np.float64), min(STRIP, rows.bins), rows.widest, mean_of)
    return encoded(np.packbits(np.nan_to_num(share) >= 0.5))


def unit_at(loaded: Loaded, kind: Kind, layer: int, place: float, order: Order) -> int | None:
    """The unit at a place of a layer, 0 its left end and 1 its right; None where there is none."""
    module = loaded.scores.modules.get(ModuleKey(layer, kind))
    if module is None or not 0 <= place < 1 or not math.isfinite(place):
        return None
    if kind == "mlp" and order == "sorted":
        return int(np.argsort(module.units, kind="stable")[int(place * len(module.units))])
    widest = max(len(each.units) for key, each in loaded.scores.modules.items() if key.kind == kind)
    index = int(place * widest)
    return index if index < len(module.units) else None


def place_of(loaded: Loaded, key: ModuleKey, index: int, order: Order) -> float:
    """The middle of a unit in its layer, as `unit_at` understands it."""
    units = loaded.scores.modules[key].units
    if key.kind == "mlp" and order == "sorted":
        rank = int(np.flatnonzero(np.argsort(units, kind="stable") == index)[0])
        return (rank + 0.5) / len(units)
    widest = max(len(each.units) for other, each in loaded.scores.modules.items() if other.kind == key.kind)
    return (index + 0.5) / widest
