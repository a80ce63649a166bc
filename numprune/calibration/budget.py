"""How much a model is calibrated on where nobody says: as much as a person can wait for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from numprune.calibration.names import SELF, parse_sources
from numprune.plan.recipe import CalibrationRecipe

if TYPE_CHECKING:
    from numprune.models.model import Model
    from numprune.models.outline import Outline

SIZES = (
    (128, 2048),
    (128, 1024),
    (128, 512),
    (64, 512),
    (64, 256),
    (32, 256),
    (16, 256),
    (16, 128),
    (8, 128),
)
"""Sequences and their length in tokens, the paper's first."""
READ_ON_CPU = 1e13
"""Parameters times tokens of a text that a CPU reads and sums up in minutes."""
WRITTEN_ON_CPU = 1.2e12
"""The same for text the model writes itself, a token at a time."""


def sized(
    model: Model | Outline, recipe: CalibrationRecipe, *, samples: int | None = None, sequence_length: int | None = None
) -> CalibrationRecipe:
    """The recipe with sequences and tokens in each as asked, and where nothing is asked as many as are taken by
    default: the paper's 128 x 2048, on a CPU the largest of `SIZES` that the model reads, or writes, in minutes. That
    follows from the model's size alone, not from a clock, so that a command gives the same model twice.

    Args:
        samples, sequence_length: what was asked for; None leaves it to the model.
    """
    sizes = [(samples or one, sequence_length or other) for one, other in SIZES]
    count, length = sizes[0]
    if str(model.device) == "cpu" and model.reads_text:
        budget = (WRITTEN_ON_CPU if SELF in parse_sources(recipe.data or SELF) else READ_ON_CPU) / model.parameters
        longest = model.maximum_length or SIZES[0][1]
        count, length = next((size for size in sizes if size[0] * min(size[1], longest) <= budget), sizes[-1])
    return replace(recipe, samples=count, sequence_length=length)


def size_note(recipe: CalibrationRecipe) -> str | None:
    """A sentence where a calibration of the default size is not the paper's."""
    if (recipe.samples, recipe.sequence_length) == SIZES[0]:
        return None
    return (
        f"On a CPU a model of this size is calibrated on {recipe.samples} sequences of {recipe.sequence_length} tokens"
        f" unless samples and sequence length are given; the paper's are {SIZES[0][0]} of {SIZES[0][1]}."
    )
