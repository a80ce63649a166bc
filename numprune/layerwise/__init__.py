"""Scoring and pruning a model one decoder layer at a time, so that it need not fit into memory."""

from numprune.layerwise.road import layer_by_layer, may_be_large, memory_of
from numprune.layerwise.run import prune_layerwise
from numprune.layerwise.scores import score_layerwise

__all__ = ["layer_by_layer", "may_be_large", "memory_of", "prune_layerwise", "score_layerwise"]
