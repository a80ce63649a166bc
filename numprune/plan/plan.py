"""The units every module keeps, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import Recipe


@dataclass(frozen=True)
class PruningPlan:
    """The units each module keeps, and the sizes that follow.

    Attributes:
        keep: ascending unit indices by module; all modules of the model are there.
        units: units of each module before pruning.
        costs: parameters per unit of each module.
        parameters_before, parameters_after: of the whole model, exact.
        prunable_parameters: before pruning.
        ratio_asked, ratio_reached: shares of the prunable parameters removed.
        threshold: the highest score that was removed by its rank; None when nothing was.
        notes: what kept the plan from the ratio asked for, in sentences.
        recipe: the recipe it was made from.
        fingerprint: of the model.
        swapped: whether the recipe's swaps are done; `numprune.prune` does them.
        beside: parameters of every layer outside its units, which go with the layer; None where it cannot go as a
            whole (`numprune.models.depth`).
    """

    keep: dict[ModuleKey, tuple[int, ...]]
    units: dict[ModuleKey, int]
    costs: dict[ModuleKey, int]
    parameters_before: int
    parameters_after: int
    prunable_parameters: int
    ratio_asked: float
    ratio_reached: float
    threshold: float | None
    recipe: Recipe
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    swapped: bool = False
    beside: tuple[int | None, ...] = ()

    @property
    def gone(self) -> tuple[int, ...]:
        """The layers that are left out of the model, ascending: all their modules keep nothing.

        The first of them stays where no other would, and all do with compensation "bias", since what it leaves in the
        place of a module is a constant that the layer adds.
        """
        if self.recipe.compensation == "bias":
            return ()
        return gone_layers(self.keep, self.beside)

    def ratio(self, key: ModuleKey) -> float:
        """Share of a module's units that go."""
        return 1 - len(self.keep[key]) / self.units[key]

    def removed(self, key: ModuleKey) -> np.ndarray:
        """Whether each unit of a module goes, (units,) bool."""
        removed = np.ones(self.units[key], dtype=bool)
        removed[list(self.keep[key])] = False
        return removed

    @property
    def remarks(self) -> list[str]:
        """The notes, and what a person must know who looks at the plan before it is carried out."""
        if not self.recipe.swaps or self.swapped:
            return self.notes
        return [
            *self.notes,
            "Swaps follow when the plan is carried out: as many units go, not all of them the ones shown here.",
        ]

    def to_pandas(self) -> pd.DataFrame:
        """One row per module: layer, module, units, kept, ratio, parameters removed."""
        rows = [
            {
                "layer": key.layer,
                "module": key.kind,
                "units": self.units[key],
                "kept": len(kept),
                "ratio": self.ratio(key),
                "parameters_removed": (self.units[key] - len(kept)) * self.costs[key],
            }
            for key, kept in self.keep.items()
        ]
        return pd.DataFrame(rows)


def gone_layers(keep: Mapping[ModuleKey, Sequence[int]], beside: Sequence[int | None]) -> tuple[int, ...]:
    """The layers all of whose modules keep nothing, ascending, among those that can go; the first stays where no other
    would."""
    emptied = {key.layer for key in keep} - {key.layer for key, kept in keep.items() if len(kept)}
    gone = [index for index, count in enumerate(beside) if count is not None and index in emptied]
    return tuple(gone if len(gone) < len(beside) else gone[1:])
