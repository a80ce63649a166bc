"""Scores: how much every head and every channel matters."""

from numprune.scoring import baselines, fisher, greedy, taylor  # noqa: F401  (each registers its scorers)
from numprune.scoring.agreement import agreement
from numprune.scoring.score import SCORERS, Scorer, score, scorer
from numprune.scoring.table import ModuleScores, ScoreTable

__all__ = ["SCORERS", "ModuleScores", "ScoreTable", "Scorer", "agreement", "score", "scorer"]
