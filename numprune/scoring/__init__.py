"""Scores: how much every head and every channel matters."""

from numprune.scoring import baselines  # noqa: F401  (registers its scorers)
from numprune.scoring.score import SCORERS, Scorer, score, scorer
from numprune.scoring.table import ModuleScores, ScoreTable

__all__ = ["SCORERS", "ModuleScores", "ScoreTable", "Scorer", "score", "scorer"]
