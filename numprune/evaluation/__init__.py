"""Measuring dense and pruned models."""

from numprune.evaluation.attention import AttentionPatterns, attention_patterns
from numprune.evaluation.divergence import Divergence, divergence
from numprune.evaluation.perplexity import Perplexity, perplexity
from numprune.evaluation.speed import Speed, measure_speed
from numprune.evaluation.sweep import SweepPoint, sweep
from numprune.evaluation.zero_shot import PAPER_TASKS, TaskScore, ZeroShot, zero_shot

__all__ = [
    "PAPER_TASKS",
    "AttentionPatterns",
    "Divergence",
    "Perplexity",
    "Speed",
    "SweepPoint",
    "TaskScore",
    "ZeroShot",
    "attention_patterns",
    "divergence",
    "measure_speed",
    "perplexity",
    "sweep",
    "zero_shot",
]
