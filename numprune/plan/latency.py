"""Seconds that decoding a token takes, by what every module keeps: what a budget of time is spent by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from numprune.errors import InputError
from numprune.plan.keys import KINDS, Kind, ModuleKey

Sizes = Mapping[ModuleKey, int]
"""Parameters in the units of every module."""


@dataclass(frozen=True)
class Latency:
    """How long one model takes to decode a token on one device, and what a module of each size takes of it.

    Attributes:
        dense: seconds a token of the whole model.
        modules: parameters in the units of every module of the whole model.
        widths: of each kind, pairs of parameters in the units of a module and seconds it takes, both ascending from
            (0, 0), a module that is gone; between them seconds are interpolated.
        batch: sequences decoded at once.
        prompt_tokens: tokens of each that were in the cache before.
        repetitions: timed runs that every width is the median of.
        device, dtype, threads: it was measured with.
    """

    dense: float
    modules: dict[ModuleKey, int]
    widths: dict[Kind, tuple[tuple[float, float], ...]]
    batch: int
    prompt_tokens: int
    repetitions: int
    device: str
    dtype: str
    threads: int

    def of_module(self, kind: Kind, parameters: np.ndarray | float) -> np.ndarray:
        """Seconds a module of a kind takes with so many parameters in its units."""
        sizes, seconds = np.array(self.widths[kind]).T
        return np.interp(parameters, sizes, seconds)

    def predicted(self, sizes: Sizes) -> float:
        """Seconds to decode a token when the modules have so many parameters left in their units; those that are not
        named, all."""
        saved = sum(
            self.of_module(key.kind, self.modules[key]) - self.of_module(key.kind, left) for key, left in sizes.items()
        )
        return self.dense - float(saved)

    def speedup(self, sizes: Sizes) -> float:
        """How many times as fast as the whole model that is."""
        return self.dense / self.predicted(sizes)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "modules": {str(key): size for key, size in self.modules.items()}}

    @classmethod
    def from_dict(cls, given: Any) -> Latency:
        """Raises InputError for what is no such table."""
        try:
            values = dict(given)
            modules = {ModuleKey.parse(key): int(size) for key, size in values.pop("modules").items()}
            widths = {
                kind: tuple((float(size), float(seconds)) for size, seconds in pairs)
                for kind, pairs in values.pop("widths").items()
            }
            table = cls(modules=modules, widths=widths, **values)
            usable = math.isfinite(table.dense) and table.dense > 0 and {key.kind for key in modules} <= set(widths)
            for pairs in widths.values():
                numbers = np.array(pairs)
                usable &= bool(np.isfinite(numbers).all() and (np.diff(numbers, axis=0) >= 0).all())
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"This is no table of decode times ({error}); measure it again.") from error
        if not usable or not set(widths) <= set(KINDS):
            raise InputError("This table of decode times has numbers no measurement gives; measure it again.")
        return table
