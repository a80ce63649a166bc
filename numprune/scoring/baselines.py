"""Scores of other methods, as their public code defines them, to be seen beside the Newton score.

Weight W (out, in), inputs x of the module's last linear. A head's score is the mean of its channels, whose order is
that of the sum some of these methods take.
"""

from __future__ import annotations

import torch

from numprune.calibration.statistics import ModuleStats
from numprune.linalg import to_float64
from numprune.plan.keys import ModuleKey
from numprune.scoring.registry import scorer


@scorer("magnitude")
def magnitude(weight: torch.Tensor, stats: ModuleStats, *, ratio: float, key: ModuleKey) -> torch.Tensor:
    """||W_:j||, the norm of the channel's column; reads no data. Not comparable between modules."""
    return to_float64(weight).norm(dim=0)


@scorer("wanda_sp")
def wanda_sp(weight: torch.Tensor, stats: ModuleStats, *, ratio: float, key: ModuleKey) -> torch.Tensor:
    """mean_i |W_ij| ||x_j|| (Wanda-sp in FLAP's code). Not comparable between modules."""
    norms = to_float64(stats.gram.diagonal()).clamp(min=0).sqrt()
    return to_float64(weight).abs().mean(dim=0) * norms.to(weight.device)


@scorer("flap")
def flap(weight: torch.Tensor, stats: ModuleStats, *, ratio: float, key: ModuleKey) -> torch.Tensor:
    """var(x_j) Σ_i W_ij², squared for attention, standardised within the module (An et al., AAAI 2024)."""
    mean = to_float64(stats.mean)
    variance = (to_float64(stats.gram.diagonal()) - stats.tokens * mean**2).clamp(min=0) / max(stats.tokens - 1, 1)
    fluctuation = variance.to(weight.device) * to_float64(weight).square().sum(dim=0)
    if key.kind == "attention":
        fluctuation = fluctuation**2
    spread = fluctuation.std()
    return (fluctuation - fluctuation.mean()) / (spread if spread > 0 else 1.0)


@scorer("random")
def random(weight: torch.Tensor, stats: ModuleStats, *, ratio: float, key: ModuleKey) -> torch.Tensor:
    """Uniform random numbers, the same on every run: what any method must beat."""
    generator = torch.Generator().manual_seed(2 * key.layer + (key.kind == "mlp"))
    return torch.rand(weight.shape[1], generator=generator, dtype=torch.float64)
