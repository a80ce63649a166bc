"""Edits of the recipe, as the page sends them, and what each makes of a session.

Everything the browser changes goes through here, in the order in which it was done. What arrives is arbitrary input of
a client and is checked: an edit that is not understood, or that the model or the recipe refuses, is an InputError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numprune.errors import InputError
from numprune.plan.keys import KINDS, ModuleKey
from numprune.plan.plan import PruningPlan
from numprune.plan.presets import METHODS, Preset
from numprune.plan.recipe import DEPTHS, Recipe, check_ratio
from numprune.scoring import ScoreTable
from numprune.ui.given_numbers import number, whole
from numprune.ui.session import Session, Unit

MOST_CELLS = 10_000
"""Ratios that arrive in one edit; a pasted table of any model is smaller."""
MOST_EDITS = 1000
UNREADABLE = "The page sent something unreadable; reload it."

ALLOCATIONS = {
    "global": "one threshold for all",
    "uniform": "same ratio everywhere",
    "attention": "attention only",
    "mlp": "MLP only",
    "ends": "protect first and last layers",
    "paper_printed": "as printed in the paper",
}
"""How the layers share the ratio. All but the recipe's own allocations are locks at 0 under "global"."""

DECISIONS = (
    "removal",
    "scorer",
    "allocation",
    "ratio",
    "ratios",
    "suggested",
    "speedup",
    "depth",
    "depth_scorer",
    "drop",
    "keep",
    "prune",
    "swaps",
    "compensation",
    "damping",
    "scarcity",
    "healing",
    "round_heads",
    "round_channels",
    "uniform",
    "allow_empty",
)
"""Everything in a recipe but the model and its calibration."""


class NeedsWork(InputError):
    """The edit needs what takes long: scores by another scorer, or ratios from the model's own loss."""


@dataclass(frozen=True)
class Situation:
    """What an edit is judged by.

    Attributes:
        scores: the recipe goes by.
        plan: of the recipe as it is; made only when an edit asks for it.
        scored: whether the model is scored by a scorer.
        start: the recipe of a model that was just opened.
    """

    scores: ScoreTable
    plan: Callable[[], PruningPlan]
    scored: Callable[[str], bool]
    start: Callable[[], Recipe]


Apply = Callable[[Session, dict[str, Any], Situation], Session]
_APPLY: dict[str, Apply] = {}


def _edit(name: str) -> Callable[[Apply], Apply]:
    def known(function: Apply) -> Apply:
        _APPLY[name] = function
        return function

    return known


def numbered(data: Any, after: int) -> list[tuple[int, dict[str, Any]]]:
    """The edits of a message with their numbers, those up to `after` left out: they arrived before.

    Raises:
        InputError: the message is no list of edits.
    """
    if not isinstance(data, list) or len(data) > MOST_EDITS:
        raise InputError(UNREADABLE)
    edits = []
    for each in data:
        number = each.get("n") if isinstance(each, dict) else None
        if not isinstance(number, int) or isinstance(number, bool):
            raise InputError(UNREADABLE)
        if number > after:
            edits.append((number, each))
    return edits


def applied(session: Session, edit: Any, situation: Situation) -> Session:
    """The session after one edit.

    Raises:
        NeedsWork: it takes long.
        InputError: it is not understood or not possible.
    """
    if not isinstance(edit, dict) or _named(edit, "kind") not in _APPLY:
        raise InputError(UNREADABLE)
    return _APPLY[edit["kind"]](session, edit, situation)


@_edit("ratio")
def _ratio(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    ratio = number(edit.get("ratio"), "The ratio")
    if session.recipe.speedup is not None:
        # A budget of parameters in the place of one of time.
        return session.changed(_gesture(edit), **decisions(session.recipe.at(ratio)))
    if session.recipe.depth != "none" and ratio != session.recipe.ratio:
        check_ratio(ratio)
        raise NeedsWork("What goes as a whole is chosen anew at another ratio.")
    return session.changed(_gesture(edit), ratio=ratio)


@_edit("cells")
def _cells(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    """Ratios of modules: a number locks its module, an empty text frees it. Neither leaves it dropped as a whole."""
    cells = edit.get("cells")
    if not isinstance(cells, list) or len(cells) > MOST_CELLS:
        raise InputError(UNREADABLE)
    ratios, back = dict(session.recipe.ratios), set()
    for cell in cells:
        if not (isinstance(cell, list) and len(cell) == 2 and all(isinstance(part, str) for part in cell)):
            raise InputError(UNREADABLE)
        key, text = _module(cell[0], situation), cell[1][:40]
        if text.strip():
            ratios[key] = parse_ratio(text)
        else:
            ratios.pop(key, None)
        back.add(key)
    values: dict[str, Any] = {"ratios": ratios, **BY_HAND}
    if back & set(session.recipe.drop):
        values |= {"depth": "none", "drop": [key for key in session.recipe.drop if key not in back]}
    return session.changed(_gesture(edit), **values)


@_edit("lock")
def _lock(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    """Lock a module at the ratio the plan gives it, or free it."""
    key, on, ratios = _module(edit.get("key"), situation), edit.get("on"), dict(session.recipe.ratios)
    if not isinstance(on, bool):
        raise InputError(UNREADABLE)
    if on and key in session.recipe.drop:
        raise InputError(f"{key} is dropped as a whole, which a ratio cannot lock; bring it back first.")
    if on:
        ratios[key] = situation.plan().ratio(key)
    else:
        ratios.pop(key, None)
    return session.changed("", ratios=ratios, **BY_HAND)


@_edit("drop")
def _drop(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    """What of a layer goes as a whole: nothing, one of its modules, or both. Nothing else is set for what goes."""
    layer, what = edit.get("layer"), _named(edit, "what")
    if not isinstance(layer, int) or isinstance(layer, bool) or what not in WHOLE:
        raise InputError(UNREADABLE)
    of_layer = [key for key in situation.scores.modules if key.layer == layer]
    gone = {key for key in of_layer if key.kind in WHOLE[what]}
    if not of_layer or (WHOLE[what] and not gone):
        raise InputError(f"This model has no {what} in layer {layer} that could go; use the layers of the map.")
    recipe = session.recipe
    drop = {key for key in recipe.drop if key.layer != layer} | gone
    if len(drop) == len(situation.scores.modules):
        raise InputError("A model without any module is none; leave at least one.")
    rest = {
        name: {key: value for key, value in getattr(recipe, name).items() if key not in gone}
        for name in ("ratios", "keep", "prune")
    }
    return session.changed("", depth="none", drop=sorted(drop), **BY_HAND, **rest)


@_edit("force")
def _force(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    """A unit stays, goes, or is left to its score."""
    if edit.get("how") not in ("auto", "keep", "prune"):
        raise InputError(UNREADABLE)
    unit = checked_unit(situation.scores, edit.get("key"), edit.get("unit"))
    return session.forced(unit, edit["how"])


@_edit("undo")
def _undo(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    return session.undo()


@_edit("redo")
def _redo(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    return session.redo()


@_edit("reset")
def _reset(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    return session.changed("", **decisions(situation.start()))


@_edit("recipe")
def _recipe(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    """Take the decisions of a recipe for the same model and calibration over."""
    return adopted(session, Recipe.from_dict(edit.get("recipe")), situation)


@_edit("method")
def _method(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    """Everything a method consists of, in one step."""
    name = _named(edit, "method")
    if name not in METHODS:
        raise InputError(UNREADABLE)
    method = METHODS[name]
    recipe = bare(session.recipe, method)
    if method.chooses or recipe.depth != "none" or not situation.scored(recipe.scorer):
        raise NeedsWork(f"{name} takes longer.")
    return session.changed("", **decisions(recipe))


@_edit("speedup")
def _speedup(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    """How many times as fast decoding is to be."""
    wanted = session.recipe.for_speedup(number(edit.get("speedup"), "The speed-up"))
    if wanted.speedup == session.recipe.speedup and session.recipe.suggested:
        return session
    raise NeedsWork("What goes for a speed-up is chosen by decode times.")


@_edit("suggest")
def _suggest(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    raise NeedsWork("The model's own loss has to be measured for this.")


@_edit("allocation")
def _allocation(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    return session.changed("", **allocation(_named(edit, "allocation"), situation.scores), **BY_HAND)


BY_HAND = {"suggested": False, "speedup": None}
"""Of a recipe in which ratios were set by hand: they are nobody's suggestion, and reach no speed-up for sure."""
WHOLE = {"none": (), "attention": ("attention",), "mlp": ("mlp",), "layer": KINDS}
"""What of a layer goes as a whole, and the modules that are."""
NAMES = {"healing": "Healing steps", "round_channels": "The multiple of channels"}
"""Settings that are whole numbers."""


@_edit("settings")
def _settings(session: Session, edit: dict[str, Any], situation: Situation) -> Session:
    """Compensation, damping, healing, rounding: one of them at a time."""
    name, value = _named(edit, "name"), edit.get("value")
    if name == "compensation" and isinstance(value, str):
        return session.changed("", compensation=value)
    if name == "depth" and value in DEPTHS:
        if value != "none":
            raise NeedsWork("What goes as a whole has to be scored for this.")
        if session.recipe.speedup is not None:
            return session.changed("", **decisions(session.recipe.without_speedup()))
        return session.changed("", depth="none", drop=() if session.recipe.depth != "none" else session.recipe.drop)
    if name == "uniform" and isinstance(value, bool):
        return session.changed("", uniform=value)
    if name in NAMES:
        return session.changed("", **{name: whole(value, NAMES[name])})
    if name == "damping":
        return session.changed("", damping=number(value, "Damping"))
    raise InputError(UNREADABLE)


def bare(recipe: Recipe, method: Preset) -> Recipe:
    """A recipe by a method, without ratios that were set or chosen before."""
    return method.applied(recipe.without_speedup().replace(ratios={}, suggested=False))


def decisions(recipe: Recipe) -> dict[str, Any]:
    """What a person decided about the pruning, as values of a recipe."""
    return {name: getattr(recipe, name) for name in DECISIONS}


def adopted(session: Session, recipe: Recipe, situation: Situation) -> Session:
    """The session with an opened recipe's decisions; it must be for the open model and its calibration.

    Raises:
        NeedsWork: the model is not scored by the recipe's scorer yet.
        InputError: the recipe is another model's, or was made with another calibration.
    """
    units = {key: len(module.units) for key, module in situation.scores.modules.items()}
    recipe.check_for(situation.scores.model, [situation.scores.fingerprint], units)
    if recipe.calibration != session.recipe.calibration:
        raise InputError(
            f"The recipe was made with calibration {recipe.calibration.data} {recipe.calibration.samples} x"
            f" {recipe.calibration.sequence_length}; open the model with it first."
        )
    if recipe.removal == "units" and not situation.scored(recipe.scorer):
        raise NeedsWork(f"The model is not scored by {recipe.scorer} yet.")
    return session.changed("", **decisions(recipe))


def allocation(name: str, scores: ScoreTable) -> dict[str, Any]:
    """The values of a recipe for one of `ALLOCATIONS`.

    Raises:
        InputError: there is none of that name.
    """
    if name not in ALLOCATIONS:
        raise InputError(f"Allocation '{name}' is not known; use {', '.join(ALLOCATIONS)}.")
    last = max(key.layer for key in scores.modules)
    held = {
        "attention": [key for key in scores.modules if key.kind == "mlp"],
        "mlp": [key for key in scores.modules if key.kind == "attention"],
        "ends": [key for key in scores.modules if key.layer in (0, last)],
    }
    return {
        "allocation": name if name not in held else "global",
        "ratios": dict.fromkeys(held.get(name, ()), 0.0),
    }


def allocation_of(recipe: Recipe, scores: ScoreTable) -> str | None:
    """The name a recipe's allocation goes by, None when ratios were set by hand."""
    held = {"allocation": recipe.allocation, "ratios": recipe.ratios}
    return next((name for name in ALLOCATIONS if allocation(name, scores) == held), None)


def checked_unit(scores: ScoreTable, module: Any, index: Any) -> Unit:
    """The unit a page names.

    Raises:
        InputError: the model has no such unit.
    """
    if not isinstance(module, str) or not isinstance(index, int) or isinstance(index, bool):
        raise InputError(UNREADABLE)
    key = ModuleKey.parse(module)
    if key not in scores.modules:
        last = max(each.layer for each in scores.modules)
        raise InputError(f"Layer {key.layer} has no {key.kind}; the model has layers 0 to {last}.")
    units = len(scores.modules[key].units)
    if not 0 <= index < units:
        raise InputError(f"{key} has units 0 to {units - 1}, not {index}.")
    return Unit(key, index)


def parse_unit(text: str, scores: ScoreTable) -> Unit:
    """The unit of a name such as 3.mlp.120.

    Raises:
        InputError: it is no name of a unit, or the model has no such unit.
    """
    parts = text.strip().split(".")
    layer, kind, index = parts if len(parts) == 3 else ("", "", "")
    if not layer.isdecimal() or kind not in KINDS or not index.isdecimal():
        raise InputError(f"'{text[:40]}' names no unit; write LAYER.MODULE.UNIT such as 3.mlp.120 or 0.attention.5.")
    return checked_unit(scores, f"{layer}.{kind}", int(index))


def parse_ratio(text: str) -> float:
    """'0.25' and '25%' are a quarter; a decimal comma is understood."""
    plain = text.strip().replace(",", ".")
    try:
        return float(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)
    except ValueError:
        raise InputError(f"'{text}' is not a ratio; write a number such as 0.25 or 25%.") from None


def ratios_of(text: str) -> list[float]:
    """The numbers of a box of ratios, ascending."""
    ratios = sorted({parse_ratio(part) for part in text.replace(";", " ").split()})
    if not 1 <= len(ratios) <= 12:
        raise InputError(f"There are {len(ratios)} ratios; give 1 to 12, such as 0 0.1 0.3 0.5.")
    return ratios


def _module(name: Any, situation: Situation) -> ModuleKey:
    if not isinstance(name, str):
        raise InputError(UNREADABLE)
    key = ModuleKey.parse(name)
    if key not in situation.scores.modules:
        raise InputError(f"This model has no {key}; use the layers of the map.")
    return key


def _named(edit: dict[str, Any], field: str) -> str:
    """A name in an edit; what is no text could not even be looked up."""
    name = edit.get(field)
    if not isinstance(name, str):
        raise InputError(UNREADABLE)
    return name


def _gesture(edit: dict[str, Any]) -> str:
    """What a drag calls itself, so that all its steps are undone together."""
    gesture = edit.get("gesture", "")
    if not isinstance(gesture, str):
        raise InputError(UNREADABLE)
    return gesture[:40]
