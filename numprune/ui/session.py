"""The decisions of one browser tab."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from numprune.calibration.budget import sized
from numprune.errors import InputError
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import CalibrationRecipe, Recipe
from numprune.ui.heatmap import Order, View

if TYPE_CHECKING:
    from numprune.models.outline import Outline

HISTORY = 100
"""Steps that can be undone."""


@dataclass(frozen=True)
class LoadRequest:
    """A model and what it is calibrated on; equal requests share one loaded model.

    Attributes:
        scores: hash of the file of scores that is opened instead of the model, empty for none.
        by_model: the sizes of the calibration that follow from the model instead: "samples", "sequence_length".
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    calibration: CalibrationRecipe = field(default_factory=CalibrationRecipe)
    scores: str = ""
    by_model: frozenset[str] = frozenset()

    def for_model(self, outline: Outline) -> LoadRequest:
        """The request with all sizes said."""
        sizes = ("samples", "sequence_length")
        asked = {name: getattr(self.calibration, name) for name in sizes if name not in self.by_model}
        return replace(self, calibration=sized(outline, self.calibration, **asked), by_model=frozenset())


class Unit(NamedTuple):
    """One head (KV group) or channel."""

    key: ModuleKey
    index: int


Dock = Literal["result", "unit", "layers", "distribution", "rivals"]
"""The parts below the map."""


@dataclass(frozen=True)
class Look:
    """How a tab looks at the plan.

    Attributes:
        view: what a colour of the map means.
        order: of its channels.
        dock: the part below it that is open; the others are drawn when they are opened.
        tab: that is open.
    """

    view: View = "log"
    order: Order = "sorted"
    dock: Dock = "result"
    tab: str = "plan"


@dataclass(frozen=True)
class Session:
    """What a tab has open. It lives on the server, and every change makes a new one (`Workbench.change`), so a failed
    change leaves the old one in place.

    Attributes:
        dense: the model that is open.
        recipe: what the page shows as the plan.
        revision: counts the changes of the recipe, so that the page can tell an old answer from a new one.
        past, future: recipes to undo to and to redo, the nearest last.
        change: what the last change of the recipe was, so that one drag of a slider is one step back.
        selected: the unit whose details are shown.
        against: the scorer whose choices are compared with the page's; empty for none.
    """

    dense: LoadRequest
    recipe: Recipe = field(default_factory=Recipe)
    revision: int = 0
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
        return self._with(recipe, past=past, future=(), change=change)

    def undo(self) -> Session:
        if not self.past:
            raise InputError("There is nothing to undo; change a ratio or a unit first.")
        *past, recipe = self.past
        return self._with(recipe, past=tuple(past), future=(*self.future, self.recipe), change="")

    def redo(self) -> Session:
        if not self.future:
            raise InputError("There is nothing to redo; undo a change first.")
        *future, recipe = self.future
        return self._with(recipe, past=(*self.past, self.recipe), future=tuple(future), change="")

    def _with(self, recipe: Recipe, **values: Any) -> Session:
        return replace(self, recipe=recipe, revision=self.revision + 1, **values)

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
