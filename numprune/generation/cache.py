"""A key-value cache for sequences whose length is known from the start."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicLayer


class ReservedLayer(DynamicLayer):
    """Keys and values of one layer in memory taken once: growing by concatenation copies all of them at every token."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self._space: tuple[torch.Tensor, torch.Tensor] | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        both = (key_states, value_states)
        self._space = tuple(states.new_empty(*states.shape[:2], self.capacity, states.shape[-1]) for states in both)
        self.keys, self.values = (space[:, :, :0] for space in self._space)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (batch, heads, tokens, head_dim); returns all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.keys.shape[-2]
        end = begin + key_states.shape[-2]
        for space, states in zip(self._space, (key_states, value_states), strict=True):
            space[:, :, begin:end] = states
        self.keys, self.values = (space[:, :, :end] for space in self._space)
        return self.keys, self.values


def reserved_cache(layers: int, capacity: int) -> Cache:
    """A cache for `layers` decoder layers and sequences of at most `capacity` tokens."""
    return Cache(layers=[ReservedLayer(capacity) for _ in range(layers)])
