"""How much a model is calibrated on where nobody says: as much as a person can wait for."""

from __future__ import annotations

from numprune.calibration.sources import SELF, parse_sources
from numprune.models.model import Model
from numprune.plan.recipe import CalibrationRecipe

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


def default_size(model: Model, data: str) -> tuple[int, int]:
    """Sequences and tokens in each that a calibration takes by default: the paper's 128 x 2048, on a CPU the largest of
    `SIZES` that the model reads, or writes, in minutes. It follows from the model's size alone, not from a clock, so
    that a command gives the same model twice.
    """
    if model.device.type != "cpu" or not model.adapter.reads_text:
        return SIZES[0]
    budget = (WRITTEN_ON_CPU if SELF in parse_sources(data) else READ_ON_CPU) / model.parameters
    longest = model.maximum_length or SIZES[0][1]
    return next((size for size in SIZES if size[0] * min(size[1], longest) <= budget), SIZES[-1])


def sized(model: Model, recipe: CalibrationRecipe) -> tuple[int, int, str | None]:
    """Sequences and length for a recipe nobody gave a size, and a note where they are not the paper's."""
    samples, length = default_size(model, recipe.data or SELF)
    if (samples, length) == SIZES[0]:
        return samples, length, None
    note = (
        f"On a CPU a model of this size is calibrated on {samples} sequences of {length} tokens unless --samples and"
        f" --sequence-length say otherwise; the paper's are {SIZES[0][0]} of {SIZES[0][1]}."
    )
    return samples, length, note
