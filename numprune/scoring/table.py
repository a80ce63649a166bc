"""Scores of all units of a model, in a form that knows no transformer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from numprune.plan.keys import ModuleKey


@dataclass(frozen=True)
class ModuleScores:
    """Scores of one module.

    Attributes:
        units: one score per unit, (units,) float64; higher means more worth keeping.
        channels: the score of every input channel before the mean over a unit, (units * width,) float64.
        cost: parameters that go with one unit.
        remainder: parameters that go besides when the last unit goes.
    """

    units: np.ndarray
    channels: np.ndarray
    cost: int
    remainder: int = 0

    @property
    def width(self) -> int:
        """Input channels per unit."""
        return len(self.channels) // len(self.units)


@dataclass(frozen=True)
class ScoreTable:
    """Scores by module, and what allocation needs to know of the model.

    Attributes:
        modules: scores by module, attention before MLP in each layer.
        scorer: name of the scorer.
        ratio: the sparsity ratio the scores were computed for.
        model: name of the model.
        fingerprint: of the model.
        parameters: all parameters of the model.
    """

    modules: dict[ModuleKey, ModuleScores]
    scorer: str
    ratio: float
    model: str
    fingerprint: str
    parameters: int

    @property
    def prunable_parameters(self) -> int:
        """Parameters that belong to units."""
        return sum(scores.cost * len(scores.units) for scores in self.modules.values())

    def to_pandas(self) -> pd.DataFrame:
        """One row per unit: layer, module, unit, score, rank (0 = lowest) in its module and overall, parameters."""
        parts = [
            pd.DataFrame(
                {
                    "layer": key.layer,
                    "module": key.kind,
                    "unit": np.arange(len(scores.units)),
                    "score": scores.units,
                    "rank_in_module": _ranks(scores.units),
                    "parameters": scores.cost,
                }
            )
            for key, scores in self.modules.items()
        ]
        table = pd.concat(parts, ignore_index=True)
        table.insert(5, "rank", _ranks(table["score"].to_numpy()))
        return table


def _ranks(values: np.ndarray) -> np.ndarray:
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks
