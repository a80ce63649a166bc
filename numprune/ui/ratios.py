"""The table of ratios per layer: inputs, locks and bars as HTML; `ratios.js` makes it editable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from numprune.errors import InputError
from numprune.plan.keys import KINDS, Kind, ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.ui.session import Session

JS = (Path(__file__).parent / "ratios.js").read_text(encoding="utf8")
CSS = (Path(__file__).parent / "ratios.css").read_text(encoding="utf8")
NAMES: dict[Kind, str] = {"attention": "Attention", "mlp": "MLP"}


def ratio_table(plan: PruningPlan, layers: int, unit: str) -> str:
    """One row per layer: the ratio the plan gives each module, a bar of it, its lock and the units that stay."""
    units: dict[Kind, str] = {"attention": f"{unit[0].upper()}{unit[1:]}s kept", "mlp": "Channels kept"}
    head = "".join(
        f"<th scope='col'>{NAMES[kind]} ratio</th><th scope='col'>Lock</th><th scope='col'>{escape(units[kind])}</th>"
        for kind in KINDS
    )
    body = "".join(
        f"<tr><th scope='row'>{layer}</th>{''.join(_cells(plan, ModuleKey(layer, kind)) for kind in KINDS)}</tr>"
        for layer in range(layers)
    )
    return (
        f"<div class='np-ratios'><table><thead><tr><th scope='col'>Layer</th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(plan: PruningPlan, key: ModuleKey) -> str:
    if key not in plan.keep:
        return "<td class='np-none' colspan='3'>none</td>"
    ratio, kept, units = plan.ratio(key), len(plan.keep[key]), plan.units[key]
    locked = key in plan.recipe.ratios
    name = f"{NAMES[key.kind]} ratio of layer {key.layer}"
    return (
        f"<td class='np-ratio{' np-locked' if locked else ''}' style='--ratio:{ratio:.4f}'>"
        f"<input type='text' inputmode='decimal' autocomplete='off' data-cell='{key}' value='{ratio:.3f}'"
        f" aria-label='{name}'></td>"
        f"<td><input type='checkbox' data-lock='{key}' aria-label='Lock the {name}'{' checked' if locked else ''}></td>"
        f"<td>{kept} of {units}</td>"
    )


@dataclass(frozen=True)
class Edit:
    """What the page sent: texts typed or pasted into cells, or one lock switched."""

    cells: tuple[tuple[ModuleKey, str], ...] = ()
    lock: tuple[ModuleKey, bool] | None = None

    @classmethod
    def parse(cls, data: Any) -> Edit:
        """Raises InputError for anything the table would not send."""
        if not isinstance(data, dict):
            raise InputError("The table sent something unreadable; reload the page.")
        cells, lock = data.get("cells", []), data.get("lock")
        if not isinstance(cells, list) or len(cells) > 10_000:
            raise InputError("The table sent something unreadable; paste at most one number a module.")
        parsed = []
        for cell in cells:
            if not (isinstance(cell, list) and len(cell) == 2 and all(isinstance(part, str) for part in cell)):
                raise InputError("The table sent something unreadable; reload the page.")
            parsed.append((ModuleKey.parse(cell[0]), cell[1][:40]))
        if lock is None:
            return cls(tuple(parsed))
        if not (isinstance(lock, list) and len(lock) == 2 and isinstance(lock[0], str) and isinstance(lock[1], bool)):
            raise InputError("The table sent something unreadable; reload the page.")
        return cls(tuple(parsed), (ModuleKey.parse(lock[0]), lock[1]))


def edited(session: Session, plan: PruningPlan, edit: Edit) -> Session:
    """The session after an edit of the table. A ratio typed in locks its module, an emptied cell frees it.

    Raises:
        InputError: a text is no ratio, or a module does not exist.
    """
    ratios = dict(session.recipe.ratios)
    for key, text in edit.cells:
        _check(plan, key)
        if text.strip():
            ratios[key] = parse_ratio(text)
        else:
            ratios.pop(key, None)
    if edit.lock is not None:
        key, on = edit.lock
        _check(plan, key)
        if on:
            ratios[key] = plan.ratio(key)
        else:
            ratios.pop(key, None)
    return session.changed("", ratios=ratios, suggested=False)


def parse_ratio(text: str) -> float:
    """'0.25' and '25%' are a quarter; a decimal comma is understood."""
    plain = text.strip().replace(",", ".")
    try:
        return float(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)
    except ValueError:
        raise InputError(f"'{text}' is not a ratio; write a number such as 0.25 or 25%.") from None


def _check(plan: PruningPlan, key: ModuleKey) -> None:
    if key not in plan.keep:
        raise InputError(f"This model has no {key}; use the layers of the table.")


def ratios_by_layer(plan: PruningPlan, layers: int, kind: Kind) -> tuple[list[float | None], list[bool]]:
    """The ratio of each layer's module (None where it has none) and whether it is locked."""
    keys: Sequence[ModuleKey] = [ModuleKey(layer, kind) for layer in range(layers)]
    ratios = [plan.ratio(key) if key in plan.keep else None for key in keys]
    return ratios, [key in plan.recipe.ratios for key in keys]
