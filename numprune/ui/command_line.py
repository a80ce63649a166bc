"""The command that does what the page shows."""

from __future__ import annotations

import shlex

from numprune.plan.recipe import Recipe


def command_line(recipe: Recipe) -> str:
    """The command that repeats the recipe; with settings only a file can hold, the one that reads it."""
    if recipe.keep or recipe.prune:
        return "numprune prune --recipe recipe.json --out pruned"
    words = ["numprune", "prune", str(recipe.model), "--ratio", f"{recipe.ratio:g}"]
    calibration = recipe.calibration
    words += ["--calibration", str(calibration.data), "--samples", str(calibration.samples)]
    words += ["--sequence-length", str(calibration.sequence_length), "--seed", str(calibration.seed)]
    words += [] if calibration.bos else ["--no-bos"]
    words += ["--text-column", calibration.text_column] if calibration.text_column else []
    words += ["--method", recipe.removal] if recipe.removal != "units" else []
    words += ["--scorer", recipe.scorer, "--allocation", recipe.allocation, "--compensation", recipe.compensation]
    words += ["--swaps", str(recipe.swaps)] if recipe.swaps else []
    words += ["--damping", f"{recipe.damping:g}"]
    words += ["--scarcity", f"{recipe.scarcity:g}"] if recipe.scarcity != Recipe.scarcity else []
    words += ["--healing", str(recipe.healing)] if recipe.healing else []
    words += ["--round-channels", str(recipe.round_channels)] if recipe.round_channels > 1 else []
    for key in recipe.drop:
        words += ["--drop", str(key)]
    words += ["--uniform"] if recipe.uniform else []
    for key, ratio in sorted(recipe.ratios.items()):
        words += ["--set", f"{key}={ratio:g}"]
    return shlex.join([*words, "--out", "pruned"])
