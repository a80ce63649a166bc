"""Named ways to prune: from the paper's own to the best that is measured here, and other methods beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numprune.errors import InputError
from numprune.plan.recipe import Recipe


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
        """The recipe with the settings of the preset; ratio, locks, forced units, what goes as a whole by hand and the
        speed-up of a preset for one stay."""
        by_hand = recipe.depth == self.settings["depth"] == "none"
        settings = dict(self.settings)
        if settings["speedup"] is not None and recipe.speedup is not None:
            settings["speedup"] = recipe.speedup
        return recipe.replace(**settings, drop=recipe.drop if by_hand else ())

    @property
    def chooses(self) -> bool:
        """Whether the ratios of its recipes are chosen, by the loss or for a speed-up."""
        return self.suggests or self.settings["speedup"] is not None


_UNITS = {"removal": "units", "swaps": 0, "speedup": None, "depth": "none", "depth_scorer": "loss"}
_PAPER = {**_UNITS, "scorer": "newton", "allocation": "global", "compensation": "paper", "healing": 0}
_PRICED = {**_PAPER, "scorer": "fisher", "compensation": "network"}

PRESETS: dict[str, Preset] = {
    "paper": Preset("the paper's method as it describes it", _PAPER, False),
    "balanced": Preset("units priced by the loss, modules fitted one after the other", _PRICED, False),
    "best": Preset("ratios from the model's own loss as well; nothing is trained", _PRICED, True),
    "healed": Preset("the same, and 128 steps of training", {**_PRICED, "healing": 128}, True),
    "fast": Preset(
        "a budget of decode time on this device: units and whole modules by what they save of it",
        {**_PRICED, "speedup": 1.5, "depth": "modules"},
        False,
    ),
}
DEFAULT_PRESET = "balanced"
"""Of `numprune prune` without recipe or preset, and of the page. `Recipe()` itself is the paper's method."""


_PLAIN = {**_UNITS, "allocation": "uniform", "compensation": "none", "healing": 0}

RIVALS: dict[str, Preset] = {
    "flap": Preset(
        "FLAP: fluctuation, one threshold, the mean as a bias",
        {**_UNITS, "scorer": "flap", "allocation": "global", "compensation": "bias", "healing": 0},
        False,
    ),
    "wanda_sp": Preset(
        "Wanda-sp: weight times activation norm, same ratio everywhere", {**_PLAIN, "scorer": "wanda_sp"}, False
    ),
    "magnitude": Preset("norm of the columns, same ratio everywhere", {**_PLAIN, "scorer": "magnitude"}, False),
    "taylor": Preset(
        "LLM-Pruner without fine-tuning: first-order Taylor, same ratio everywhere",
        {**_PLAIN, "scorer": "taylor"},
        False,
    ),
    "osscar": Preset(
        "OSSCAR: greedy by compensated loss, then swaps; same ratio everywhere",
        {**_PLAIN, "scorer": "osscar", "compensation": "paper", "swaps": 8},
        False,
    ),
    "slicegpt": Preset(
        "SliceGPT: the residual stream narrower by its principal components, heads and channels whole",
        {**_UNITS, "removal": "slicegpt", "compensation": "none", "healing": 0},
        False,
    ),
    "shortgpt": Preset(
        "ShortGPT: whole layers by block influence, nothing refitted",
        {**_PLAIN, "scorer": "magnitude", "allocation": "none", "depth": "layers", "depth_scorer": "influence"},
        False,
    ),
    "drop": Preset(
        "whole attentions and MLPs, greedily by the loss without them; nothing refitted",
        {**_PLAIN, "scorer": "magnitude", "allocation": "none", "depth": "modules"},
        False,
    ),
    "random": Preset("units drawn at random, same ratio everywhere", {**_PLAIN, "scorer": "random"}, False),
}
"""Other methods, as their public code defines them."""

METHODS: dict[str, Preset] = {**PRESETS, **RIVALS}


def preset(name: str) -> Preset:
    """A preset or another method by name; raises InputError when there is none."""
    if name not in METHODS:
        raise InputError(f"preset '{name}' is not known; use {', '.join(METHODS)}.")
    return METHODS[name]


def method_of(recipe: Recipe) -> str | None:
    """The name of the method a recipe follows, None when it goes its own way, as with ratios set by hand."""
    if recipe.ratios and not recipe.suggested:
        return None
    # What is set for single modules belongs to no method, and some methods refuse it.
    bare = recipe.replace(ratios={}, keep={}, prune={}, drop=())
    fitting = (
        name for name, method in METHODS.items() if method.chooses == recipe.suggested and method.applied(bare) == bare
    )
    return next(fitting, None)
