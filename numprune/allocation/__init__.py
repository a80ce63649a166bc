"""From scores to the units every module keeps: one threshold, ratios by the loss, budget exchanged, units swapped."""
