"""How often a speed is measured."""

FEWEST = 3
"""Timed runs of each model at least; two cannot show a spread."""
