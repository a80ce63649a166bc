"""Where two methods agree on what matters, and where they do not."""

from __future__ import annotations

import numpy as np
import pandas as pd

from numprune.errors import InputError
from numprune.plan.recipe import check_ratio
from numprune.scoring.table import ScoreTable


def agreement(first: ScoreTable, second: ScoreTable, *, ratio: float = 0.5) -> pd.DataFrame:
    """How two methods order the units of every module.

    Args:
        first, second: scores of the same model.
        ratio: share of a module's units each method may remove, the lowest-scored ones; rounded to whole units.

    Returns:
        One row per module: layer, module, units; spearman, the rank correlation of the scores (ties share their mean
        rank; NaN where all scores of a method are equal); removed, units each method removes; both, of these the
        same ones; only_first and only_second, the units that one of them removes, as tuples.

    Raises:
        InputError: the scores are of different models, or the ratio is out of range.
    """
    check_ratio(ratio)
    if first.fingerprint != second.fingerprint or first.modules.keys() != second.modules.keys():
        raise InputError(f"The scores are of {first.model} and {second.model}; compare scores of the same model.")
    rows = []
    for key, module in first.modules.items():
        scores, others = module.units, second.modules[key].units
        count = round(ratio * len(scores))
        removed, also_removed = (set(np.argsort(each, kind="stable")[:count].tolist()) for each in (scores, others))
        rows.append(
            {
                "layer": key.layer,
                "module": key.kind,
                "units": len(scores),
                "spearman": _spearman(scores, others),
                "removed": count,
                "both": len(removed & also_removed),
                "only_first": tuple(sorted(removed - also_removed)),
                "only_second": tuple(sorted(also_removed - removed)),
            }
        )
    return pd.DataFrame(rows)


def _spearman(scores: np.ndarray, others: np.ndarray) -> float:
    a, b = (pd.Series(each).rank().to_numpy() for each in (scores, others))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else float("nan")
