"""Units removed one after the other, each time the one whose loss the others can best make up for.

This is the selection of OSSCAR (Meng et al., ICML 2024), whose swaps are in `exchange.py`. It also says which of a
module's units go first when the Newton scores say how many.
"""

from __future__ import annotations

import torch

from numprune.calibration.statistics import ModuleStats
from numprune.errors import InputError, NumericalError
from numprune.linalg import damped_cholesky, to_float64
from numprune.models.adapter import Block
from numprune.scoring.newton import numerical_score, unit_gram
from numprune.scoring.registry import block_scorer

STEPS = 1024
"""Steps a module is emptied in; one with more units loses several in a step."""
GAPS = 0.2
"""Share of the places that may be empty before they are closed."""


def eliminate(
    weight: torch.Tensor, gram: torch.Tensor, *, width: int = 1, damping: float = 0.01, steps: int = STEPS
) -> tuple[torch.Tensor, torch.Tensor]:
    """The order in which units go when each time the one with the least compensated loss goes.

    With P = (G + gamma I)⁻¹, gamma = damping * mean(diag G), and B the compensated weight (in, out), the loss rises
    by tr(B_gᵀ (P_gg)⁻¹ B_g) when unit g goes; then B -= P_:g (P_gg)⁻¹ B_g and P -= P_:g (P_gg)⁻¹ P_g:, which is
    exact. Costs O(in³ + in² out), in products of whole matrices when several units go in a step.

    Args:
        weight: (out, in), as torch stores it.
        gram: (in, in), XᵀX of the layer's inputs.
        width: consecutive input channels of a unit.
        damping: gamma as a fraction of the mean diagonal of the Gram matrix, positive.
        steps: of which each removes the same number of units, at least one.

    Returns:
        Units in the order in which they go, (units,) long, and ||X W - X_S W'||² + gamma ||δW||² after each
        step, (units,) float64, not falling.

    Raises:
        InputError: shapes, width, damping or steps are wrong.
        NumericalError: inputs are not finite, or the Gram matrix cannot be factorised.
    """
    size = weight.shape[-1]
    if weight.ndim != 2 or gram.shape != (size, size) or width < 1 or size % width:
        raise InputError(
            f"weight {tuple(weight.shape)}, gram {tuple(gram.shape)} and width {width} do not fit;"
            " expected (out, in), (in, in) and a divisor of in."
        )
    if not 0 < damping < float("inf") or steps < 1:
        raise InputError(f"damping is {damping} and steps {steps}; give a positive fraction and at least 1 step.")
    b, g = to_float64(weight).T.clone(), to_float64(gram).to(weight.device)
    if not bool(torch.isfinite(b).all() and torch.isfinite(g).all()):
        raise NumericalError("weight or gram has non-finite values; check the checkpoint and the calibration data.")
    units = size // width
    if not bool(g.any()):
        return torch.arange(units), torch.zeros(units, dtype=torch.float64)
    p = torch.cholesky_inverse(damped_cholesky(g, damping)[0])
    room = torch.empty_like(p)
    left = torch.arange(units, device=b.device)
    # Units that went keep their place for a while: closing the gap at every step would cost more than the steps.
    there = torch.ones(units, dtype=torch.bool, device=b.device)
    batch, gaps = max(1, units // steps), 0
    order, losses, loss = [], [], 0.0
    while gaps < len(left):
        costs = costs_of(p, b, width).masked_fill(~there, torch.inf)
        gone = torch.argsort(costs, stable=True)[: min(batch, len(left) - gaps)]
        out = channels_of(gone, width)
        factor = torch.linalg.cholesky(p[out][:, out])
        # Units that go in one step are priced together.
        loss += float(torch.linalg.solve_triangular(factor, b[out], upper=False).square().sum())
        order.append(left[gone].cpu())
        losses += [loss] * len(gone)
        change = torch.cholesky_solve(torch.cat([p[out], b[out]], dim=1), factor)
        cross = p[:, out]
        p -= torch.mm(cross, change[:, : len(p)], out=room)
        b -= cross @ change[:, len(p) :]
        # What is left of them is rounding, which no factorisation could take.
        p[out[:, None], out] = torch.eye(len(out), dtype=p.dtype, device=p.device)
        there[gone] = False
        gaps += len(gone)
        if gaps > len(left) * GAPS:
            rest = there.repeat_interleave(width)
            p, b, left = p[rest][:, rest], b[rest], left[there]
            room, there, gaps = torch.empty_like(p), there[there], 0
    return torch.cat(order), torch.tensor(losses, dtype=torch.float64)


def costs_of(p: torch.Tensor, b: torch.Tensor, width: int) -> torch.Tensor:
    """How much the loss rises when each unit alone goes, (units,)."""
    if width == 1:
        return b.square().sum(dim=1) / p.diagonal()
    units = len(b) // width
    blocks = torch.stack([p[i * width : (i + 1) * width, i * width : (i + 1) * width] for i in range(units)])
    factors = torch.linalg.cholesky(blocks)
    return torch.linalg.solve_triangular(factors, b.reshape(units, width, -1), upper=False).square().sum((1, 2))


def channels_of(units: torch.Tensor, width: int) -> torch.Tensor:
    return (units[:, None] * width + torch.arange(width, device=units.device)).reshape(-1)


@block_scorer("osscar")
def osscar(block: Block, weight: torch.Tensor, stats: ModuleStats, *, ratio: float) -> torch.Tensor:
    """The share of a module's output that is lost, with compensation, by the time the unit goes (OSSCAR's order)."""
    order, losses = eliminate(weight, stats.gram, width=block.width)
    scores = torch.empty_like(losses)
    scores[order] = losses / losses[-1].clamp(min=torch.finfo(torch.float64).tiny)
    return scores.repeat_interleave(block.width)


@block_scorer("newton_greedy")
def newton_greedy(block: Block, weight: torch.Tensor, stats: ModuleStats, *, ratio: float) -> torch.Tensor:
    """The Newton scores of a module's units, dealt out in the order of `eliminate`.

    How much a module loses is what the Newton scores say; which of its units go is what costs the least.
    """
    channels = numerical_score(weight, unit_gram(stats), ratio=ratio)
    values = channels.reshape(block.units, block.width).mean(1).cpu().sort().values
    scores = torch.empty_like(values)
    scores[eliminate(weight, stats.gram, width=block.width)[0]] = values
    return scores.repeat_interleave(block.width)
