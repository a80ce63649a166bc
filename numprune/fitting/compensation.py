"""Closed-form compensation of the layer that follows what was pruned (Shen et al., AAAI 2025, theorem 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from numprune.errors import InputError, NumericalError
from numprune.linalg import damped_cholesky, to_float64


def compensate(
    weight: torch.Tensor, gram: torch.Tensor, keep: Sequence[int] | torch.Tensor, *, damping: float = 0.01
) -> torch.Tensor:
    """Weights of the kept input channels that best reproduce the layer's full output.

    Minimises ||X W - X_S W'||² + gamma ||W' - W_S||² over W', in the paper's X W convention:

        W_S + (G_SS + gamma I)⁻¹ G_SP W_P,        gamma = damping * mean(diag G),

    which equals theorem 3 (δW = -G⁻¹ M (Mᵀ G⁻¹ M)⁻¹ Mᵀ W on G + gamma I) by the block inverse, with one
    Cholesky solve of size |S|.

    Args:
        weight: (out, in), as torch stores it.
        gram: (in, in), XᵀX of the layer's inputs.
        keep: indices of the kept input channels, S.
        damping: gamma as a fraction of the mean diagonal of the Gram matrix; not negative.

    Returns:
        (out, len(keep)) float64.

    Raises:
        InputError: shapes, indices or damping are wrong.
        NumericalError: inputs are not finite, or G_SS cannot be factorised with this damping.
    """
    if weight.ndim != 2:
        raise InputError(f"weight is {tuple(weight.shape)}; expected (out, in).")
    size = weight.shape[1]
    kept = torch.as_tensor(keep, dtype=torch.long, device="cpu")
    if gram.shape != (size, size):
        raise InputError(f"gram is {tuple(gram.shape)}; a weight {tuple(weight.shape)} needs ({size}, {size}).")
    if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= size or kept.unique().numel() != kept.numel()):
        raise InputError(f"keep must hold different indices from 0 to {size - 1}.")
    if not (math.isfinite(damping) and damping >= 0):
        raise InputError(f"damping is {damping}; give 0 or a positive fraction such as 0.01.")
    w, g = to_float64(weight), to_float64(gram)
    if not bool(torch.isfinite(w).all() and torch.isfinite(g).all()):
        raise NumericalError("weight or gram has non-finite values; check the checkpoint and the calibration data.")
    kept = kept.to(w.device)
    g = g.to(w.device)
    pruned_mask = torch.ones(size, dtype=torch.bool, device=w.device)
    pruned_mask[kept] = False
    pruned = pruned_mask.nonzero()[:, 0]
    if kept.numel() == 0 or pruned.numel() == 0:
        return w[:, kept]
    # gamma refers to the whole Gram matrix, so that it does not depend on what is kept.
    g_ss = g[kept][:, kept]
    g_ss.diagonal().add_(damping * g.diagonal().mean())
    factor, _ = damped_cholesky(g_ss, 0.0)
    update = torch.cholesky_solve(g[kept][:, pruned] @ w[:, pruned].T, factor)
    return w[:, kept] + update.T


def lost_mean(weight: torch.Tensor, mean: torch.Tensor, keep: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """What the removed input channels added to the output on average: W_P mean(x_P), FLAP's bias (AAAI 2024).

    Args:
        weight: (out, in).
        mean: (in,), the mean input.
        keep: indices of the kept input channels.

    Returns:
        (out,) float64.

    Raises:
        NumericalError: an input is not finite.
    """
    w, lost = to_float64(weight), to_float64(mean).to(weight.device, copy=True)
    lost[torch.as_tensor(keep, dtype=torch.long, device=lost.device)] = 0
    bias = w @ lost.to(w.device)
    if not bool(torch.isfinite(bias).all()):
        raise NumericalError("weight or mean has non-finite values; check the checkpoint and the calibration data.")
    return bias


def relative_errors(
    weight: torch.Tensor, gram: torch.Tensor, keep: Sequence[int] | torch.Tensor, kept_weights: Sequence[torch.Tensor]
) -> list[float]:
    """||X W - X_S W'|| / ||X W|| (Frobenius) of the layer's output on the calibration data, from its Gram matrix.

    Args:
        weight: (out, in), the dense weight.
        gram: (in, in).
        keep: indices S of the kept input channels.
        kept_weights: (out, len(keep)) each, weights W' they may have after pruning.

    Returns:
        One error a weight.
    """
    w, g = to_float64(weight), to_float64(gram).to(weight.device if weight.device.type != "mps" else "cpu")
    kept = torch.as_tensor(keep, dtype=torch.long, device=w.device)
    energy = float(((w @ g) * w).sum())
    errors = []
    for kept_weight in kept_weights:
        difference = w.clone()
        difference[:, kept] -= to_float64(kept_weight)
        lost = float(((difference @ g) * difference).sum())
        errors.append(math.sqrt(max(lost, 0.0) / energy) if energy > 0 else 0.0)
    return errors
