"""How much goes through a model at once.

A batch decides how much memory the activations take and, by the order of sums, the last bits of a result; nothing else.
"""

from __future__ import annotations

import torch

FIT_SEQUENCES = 16
"""Calibration sequences that run through one layer at once."""
BACKWARD_SEQUENCES = 4
"""Sequences that are differentiated at once at most."""
BACKWARD_TOKENS = 1024
"""Tokens of these at most, unless a single sequence has more."""
BACKWARD_LOGITS = 2**25
"""Logits of these at most, likewise; several tensors of that size are held."""
SAMPLED_SEQUENCES = 32
"""Sequences or images a model draws at once."""
TRAINED_LOGITS = 2**26
"""Logits that are differentiated at once, unless a single sequence has more."""
READ_LOGITS = 2**23
"""Logits that are held at once where a layer's outputs are known and only the output layer runs."""
NEWTON_LOGITS = 2**29
"""Logits that one Newton step of the last norm is taken from at most: 10,922 tokens of a vocabulary of 49,152. Half as
many cost 2 to 6 % of the excess loss of SmolLM2 at 20 %, for 15 of 380 seconds."""
EXACT_POSITIONS = 128
"""Positions whose distributions are in memory in float64 at once."""


def sequences_per_forward(device: torch.device, length: int) -> int:
    """Sequences of `length` tokens in a forward pass: about 4,096 tokens on a CPU, 16,384 elsewhere."""
    return max(1, (4096 if device.type == "cpu" else 16384) // length)


def sequences_per_backward(length: int, vocabulary: int) -> int:
    """Sequences of `length` tokens in a backward pass to every layer, at least one."""
    tokens = min(BACKWARD_TOKENS, BACKWARD_LOGITS // vocabulary)
    return max(1, min(BACKWARD_SEQUENCES, tokens // length))
