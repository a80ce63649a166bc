"""Measuring dense and pruned models."""

from numprune.evaluation.perplexity import Perplexity, perplexity
from numprune.evaluation.speed import Speed, measure_speed

__all__ = ["Perplexity", "Speed", "measure_speed", "perplexity"]
