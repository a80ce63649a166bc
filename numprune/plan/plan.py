"""The units every module keeps, as data."""

from __future__ import annotations

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
