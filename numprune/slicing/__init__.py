"""SliceGPT: pruning directions of the residual stream instead of units."""
