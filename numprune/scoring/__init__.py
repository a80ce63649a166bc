"""Scores: how much every head and every channel matters."""

from numprune.scoring import baselines, elimination, fisher, newton, taylor  # noqa: F401  (each registers its scorers)
from numprune.scoring.registry import PRICED, SCORERS, Scorer, check_scorer, scorer
from numprune.scoring.run import score
from numprune.scoring.table import ModuleScores, ScoreTable

__all__ = ["PRICED", "SCORERS", "ModuleScores", "ScoreTable", "Scorer", "check_scorer", "score", "scorer"]
