"""SliceGPT: the other kind of pruning, of directions of the residual stream."""
