"""Named ways to prune, from the paper's own to the best that is measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numprune.errors import InputError
from numprune.recipe import Recipe


@dataclass(frozen=True)
class Preset:
    """A named way to prune.

    Attributes:
        about: what it does, in a few words.
        settings: values of the recipe.
        suggests: whether the ratios come from the model's own loss (`numprune.suggest`).
    """

    about: str
    settings: dict[str, Any]
    suggests: bool

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with the settings of the preset; ratio, locks and forced units stay."""
        return recipe.replace(**self.settings)


_PAPER = {"scorer": "newton", "allocation": "global", "compensation": "paper", "healing": 0}
_RESIDUAL = {**_PAPER, "compensation": "residual"}

PRESETS: dict[str, Preset] = {
    "paper": Preset("the paper's method as it describes it", _PAPER, False),
    "balanced": Preset("its scores and threshold, fitted to the residual stream", _RESIDUAL, False),
    "best": Preset("ratios from the model's own loss as well; nothing is trained", _RESIDUAL, True),
    "healed": Preset("the same, and 16 steps of training", {**_RESIDUAL, "healing": 16}, True),
}


def preset(name: str) -> Preset:
    """A preset by name; raises InputError when there is none."""
    if name not in PRESETS:
        raise InputError(f"preset '{name}' is not known; use {', '.join(PRESETS)}.")
    return PRESETS[name]
