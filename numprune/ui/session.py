"""The decisions of one browser tab."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from numprune.errors import InputError
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import CalibrationRecipe, Recipe

HISTORY = 100
"""Steps that can be undone."""


@dataclass(frozen=True)
class LoadRequest:
    """Everything that decides which scores are shown; equal requests share one loaded model."""

    model: str
    device: str = "auto"
    dtype: str = "auto"
    calibration: CalibrationRecipe = field(default_factory=CalibrationRecipe)
    scorer: str = "newton"


class Unit(NamedTuple):
    """One head (KV group) or channel."""

    key: ModuleKey
    index: int


@dataclass(frozen=True)
class Session:
    """What quick handlers change; long ones only read it, so that neither undoes the other's work.

    Handlers return a new session, so a failed step leaves the old one in place.

    Attributes:
        dense: the model that is open.
        recipe: what the page shows as the plan.
        past, future: recipes to undo to and to redo, the nearest last.
        change: what the last change of the recipe was, so that one drag of a slider is one step back.
        selected: the unit whose details are shown.
        against: the scorer whose choices are compared with the page's; empty for none.
    """

    dense: LoadRequest | None = None
    recipe: Recipe = field(default_factory=Recipe)
    past: tuple[Recipe, ...] = ()
    future: tuple[Recipe, ...] = ()
    change: str = ""
    selected: Unit | None = None
    against: str = ""

    def changed(self, change: str, **values: Any) -> Session:
        """With other values in the recipe. Consecutive changes of the same name are undone together.

        Raises:
            InputError: a value is out of range.
        """
        recipe = self.recipe.replace(**values)
        if recipe == self.recipe:
            return self
        past = self.past if change and change == self.change else (*self.past, self.recipe)[-HISTORY:]
        return replace(self, recipe=recipe, past=past, future=(), change=change)

    def undo(self) -> Session:
        if not self.past:
            raise InputError("There is nothing to undo; change a ratio or a unit first.")
        *past, recipe = self.past
        return replace(self, recipe=recipe, past=tuple(past), future=(*self.future, self.recipe), change="")

    def redo(self) -> Session:
        if not self.future:
            raise InputError("There is nothing to redo; undo a change first.")
        *future, recipe = self.future
        return replace(self, recipe=recipe, past=(*self.past, self.recipe), future=tuple(future), change="")

    def forced(self, unit: Unit, how: str) -> Session:
        """With a unit forced to "keep" or to "prune", or left to its score again ("auto")."""
        lists = {}
        for name in ("keep", "prune"):
            units = {key: set(indices) for key, indices in getattr(self.recipe, name).items()}
            here = units.setdefault(unit.key, set())
            here.discard(unit.index)
            if name == how:
                here.add(unit.index)
            lists[name] = {key: tuple(indices) for key, indices in units.items()}
        return self.changed("", **lists)
