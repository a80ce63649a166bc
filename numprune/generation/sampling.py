"""How the next token or code is drawn from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from numprune.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: most tokens to write; the model's maximum length also ends a text.
        temperature: 0 takes the likeliest token each time.
        top_k: draw among the k likeliest tokens; 0 for all.
        top_p: draw among the likeliest tokens that hold this much probability; 1 for all.
        seed: row i of a batch draws from the generator seeded with seed + i.
    """

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {self.max_new_tokens}; give at least 1.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature}; give 0 (greedy) or a positive number.")
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}; give 0 (all tokens) or a positive number.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; give a number above 0 and at most 1.")

    def warpers(self) -> LogitsProcessorList:
        chosen = LogitsProcessorList()
        if self.temperature not in (0, 1):
            chosen.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k:
            chosen.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            chosen.append(TopPLogitsWarper(self.top_p))
        return chosen


def draw(logits: torch.Tensor, temperature: float, warpers: LogitsProcessorList, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF sampling; (rows,) on the device of the logits.

    Args:
        logits: (rows, vocabulary) float32.
        temperature: 0 takes the likeliest; every other one is in `warpers`.
        uniform: one number in [0, 1) a row, (rows,).
    """
    if temperature == 0:
        return logits.argmax(-1)
    # The warpers of Sampling look at nothing but the logits.
    cumulative = warpers(None, logits).softmax(-1).cumsum(-1)
    target = uniform.to(logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]
