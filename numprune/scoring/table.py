"""Scores of all units of a model, in a form that knows no transformer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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

    @cached_property
    def order(self) -> np.ndarray:
        """The units in ascending order of score, equal ones by their number, (units,). From here on the scores cannot
        be changed in place, since the order would be another's."""
        self.units.flags.writeable = False
        return np.argsort(self.units, kind="stable")


@dataclass(frozen=True)
class Ranking:
    """The units of all modules in one order.

    Attributes:
        units: the scores of all units, module after module, (units,).
        starts: where each module begins in `units`.
        order: places in `units` in ascending order of score, equal ones as they stand, (units,).
        owner: of each place in `order`, the number of its module, (units,).
    """

    units: np.ndarray
    starts: dict[ModuleKey, int]
    order: np.ndarray
    owner: np.ndarray


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores by module, and what allocation needs to know of the model.

    Attributes:
        modules: scores by module, attention before MLP in each layer.
        scorer: name of the scorer.
        ratio: the sparsity ratio the scores were computed for.
        model: name of the model.
        fingerprint: of the model.
        parameters: all parameters of the model.
        beside: parameters of every layer outside its units, which go with the layer; None where it cannot go as a
            whole (`numprune.models.depth`). Empty in files of earlier versions, by which no layer goes.
        influence: block influence of every layer; empty where it was not taken.
    """

    modules: dict[ModuleKey, ModuleScores]
    scorer: str
    ratio: float
    model: str
    fingerprint: str
    parameters: int
    beside: tuple[int | None, ...] = ()
    influence: tuple[float, ...] = ()

    @property
    def prunable_parameters(self) -> int:
        """Parameters that belong to units."""
        return sum(scores.cost * len(scores.units) for scores in self.modules.values())

    @cached_property
    def ranking(self) -> Ranking:
        """All units in the order of their scores, sorted once: a ratio that moves only cuts it elsewhere."""
        counts = [len(scores.units) for scores in self.modules.values()]
        for scores in self.modules.values():
            scores.units.flags.writeable = False
        units = np.concatenate([scores.units for scores in self.modules.values()])
        order = np.argsort(units, kind="stable").astype(np.int32)
        owner = np.repeat(np.arange(len(counts), dtype=np.int16), counts)[order]
        starts = dict(zip(self.modules, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))
        return Ranking(units, starts, order, owner)

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
