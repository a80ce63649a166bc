"""Measuring dense and pruned models."""
