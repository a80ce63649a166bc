"""Pruning a model one decoder layer at a time, so that it need not fit into memory."""

from numprune.layerwise.run import prune_layerwise

__all__ = ["prune_layerwise"]
