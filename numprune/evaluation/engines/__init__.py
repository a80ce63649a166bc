"""Dense and pruned models timed in the engines that serve them."""
