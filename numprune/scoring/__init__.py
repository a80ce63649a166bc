"""Scores: how much every head and every channel matters."""

from numprune.lazy import lazily

__all__, __getattr__ = lazily(
    __name__,
    {
        "numprune.scoring.registry": "BUILT_IN PRICED Scorer scorer",
        "numprune.scoring.run": "SCORERS check_scorer score",
        "numprune.scoring.table": "ModuleScores ScoreTable",
    },
)
