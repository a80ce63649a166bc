"""Units removed one after the other, each time the one whose loss the others can best make up for.

This is the selection of OSSCAR (Meng et al., ICML 2024), whose swaps are in `numprune.allocation.swap_search`. It also
says which of a module's units go first when the Newton scores say how many.
"""

from __future__ import annotations

import torch

from numprune.calibration.statistics import ModuleStats
from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.linalg import damped_cholesky, symmetric_product, to_float64
from numprune.models.adapter import Block
from numprune.scoring.newton import numerical_score, unit_gram
from numprune.scoring.registry import block_scorer

PENDING = 64
"""Channels that may be gone before the matrices are brought up to date: enough to make matrix products of the updates,
few enough that the single columns read meanwhile stay cheap to correct."""
PANEL = 512
"""Rows of the matrices that are updated at once, from their first column to the diagonal."""
SPARSE = 1 / 8
"""Share of the units that may be gone before the matrices are copied without them."""


def eliminate(
    weight: torch.Tensor,
    gram: torch.Tensor,
    *,
    width: int = 1,
    damping: float = 0.01,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The order in which units go when each time the one with the least compensated loss goes.

    With P = (G + gamma I)⁻¹, gamma = damping * mean(diag G), B the compensated weight (in, out) and K = B Bᵀ, the loss
    rises by tr((P_gg)⁻¹ K_gg) when unit g goes. Then, with C = P_:g (P_gg)⁻¹ and A = K_:g,

        P <- P - C P_gg Cᵀ,        K <- K - C Aᵀ - A Cᵀ + C K_gg Cᵀ,

    which is exact and needs no `out` dimension. A step reads one block of columns and the diagonal blocks alone, so
    the updates of several steps are applied together, as products of matrices. Costs about 10 Cholesky factorisations
    of size `in`.

    Args:
        weight: (out, in), as torch stores it.
        gram: (in, in), XᵀX of the layer's inputs.
        width: consecutive input channels of a unit.
        damping: gamma as a fraction of the mean diagonal of the Gram matrix, positive.

    Returns:
        Units in the order in which they go, (units,) long, and ||X W - X_S W'||² + gamma ||δW||² after each
        step, (units,) float64, not falling.

    Raises:
        InputError: shapes, width or damping are wrong.
        NumericalError: inputs are not finite, or the Gram matrix cannot be factorised.
        Cancelled: `cancel` was set.
    """
    size = weight.shape[-1]
    if weight.ndim != 2 or gram.shape != (size, size) or width < 1 or size % width:
        raise InputError(
            f"weight {tuple(weight.shape)}, gram {tuple(gram.shape)} and width {width} do not fit;"
            " expected (out, in), (in, in) and a divisor of in."
        )
    if not 0 < damping < float("inf"):
        raise InputError(f"damping is {damping}; give a positive fraction.")
    w, g = to_float64(weight), to_float64(gram).to(weight.device)
    if not bool(torch.isfinite(w).all() and torch.isfinite(g).all()):
        raise NumericalError("weight or gram has non-finite values; check the checkpoint and the calibration data.")
    units = size // width
    if not bool(g.any()):
        return torch.arange(units), torch.zeros(units, dtype=torch.float64)
    remaining = _Remaining(torch.cholesky_inverse(damped_cholesky(g, damping)[0]), symmetric_product(w), width)
    order, losses, loss = [], [], 0.0
    for step in range(units):
        if remaining.pending >= PENDING:
            check_cancelled(cancel)
            remaining.apply()
            if progress is not None:
                progress(step, units, "eliminating units")
        unit, cost = remaining.remove_cheapest()
        loss += cost
        order.append(unit)
        losses.append(loss)
    return torch.tensor(order), torch.tensor(losses, dtype=torch.float64)


class _Remaining:
    """P and K of the units that remain, see `eliminate`; updates of the last steps wait in `_c`, `_v` and `_u`.

    Written as P - C V and K - C Uᵀ - U Cᵀ, with V = P_gg Cᵀ and U = A - 1/2 C K_gg of every pending step. Both are
    symmetric: only what lies on and below the diagonal, and the diagonal block of every unit, is kept up to date.
    """

    def __init__(self, p: torch.Tensor, k: torch.Tensor, width: int) -> None:
        self._p, self._k, self._width = p, k, width
        self._units = torch.arange(len(p) // width, device=p.device)
        self._p_blocks, self._k_blocks = (_diagonal_blocks(each, width) for each in (p, k))
        self._one = torch.eye(width, dtype=p.dtype, device=p.device)
        self._begin()

    def _begin(self) -> None:
        size = len(self._p)
        columns = PENDING - 1 + self._width
        self._c, self._v, self._u = (self._p.new_empty(size, columns) for _ in range(3))
        self._out = torch.zeros(len(self._units), dtype=torch.bool, device=self._p.device)
        self.pending = self._gone = 0

    def remove_cheapest(self) -> tuple[int, float]:
        """Remove the unit with the least cost; its index in the module and the cost."""
        costs = costs_of_blocks(self._p_blocks, self._k_blocks).masked_fill(self._out, torch.inf)
        cheapest = costs.argmin()
        index, cost = int(cheapest), float(costs[cheapest])
        self._remove(index)
        return int(self._units[index]), cost

    def _remove(self, index: int) -> None:
        width, pending = self._width, self.pending
        columns = slice(index * width, (index + 1) * width)
        c_old, v_old, u_old = (each[:, :pending] for each in (self._c, self._v, self._u))
        p = _columns(self._p, columns) - _product(v_old, c_old[columns])
        a = _columns(self._k, columns) - _product(c_old, u_old[columns]) - _product(u_old, c_old[columns])
        p_gg, k_gg = p[columns], a[columns]
        c = torch.cholesky_solve(p.T, torch.linalg.cholesky(p_gg)).T if width > 1 else p / p_gg
        u = torch.addmm(a, c, k_gg, alpha=-0.5)
        new = slice(pending, pending + width)
        self._c[:, new], self._v[:, new], self._u[:, new] = c, p, u
        self.pending += width
        self._gone += 1
        c, p, u = (each.reshape(-1, width, width) for each in (c, p, u))
        if width == 1:
            self._p_blocks.addcmul_(c, p, value=-1)
            self._k_blocks.addcmul_(c, u, value=-2)
        else:
            cross = c @ u.transpose(1, 2)
            self._p_blocks -= c @ p.transpose(1, 2)
            self._k_blocks -= cross + cross.transpose(1, 2)
        self._out[index] = True
        # What is left of its own blocks is rounding, which no factorisation could take.
        self._p_blocks[index] = self._one

    def apply(self) -> None:
        """Bring P and K up to date, and close the gaps of removed units where they have become many."""
        c, v, u = (each[:, : self.pending] for each in (self._c, self._v, self._u))
        left, right = torch.cat([c, u], 1), torch.cat([u, c], 1)
        step = self._width * max(1, PANEL // self._width)
        for begin in range(0, len(self._p), step):
            rows = slice(begin, begin + step)
            end = min(begin + step, len(self._p))
            self._p[rows, :end].addmm_(c[rows], v[:end].T, alpha=-1)
            self._k[rows, :end].addmm_(left[rows], right[:end].T, alpha=-1)
        self.pending = 0
        if self._gone > SPARSE * len(self._units):
            stays = ~self._out
            rows = stays.repeat_interleave(self._width).nonzero()[:, 0]
            self._p, self._k = (each.index_select(0, rows).index_select(1, rows) for each in (self._p, self._k))
            self._units = self._units[stays]
            self._p_blocks, self._k_blocks = self._p_blocks[stays], self._k_blocks[stays]
            self._begin()


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right.T; with a vector where there is one, for which matrix products are slow."""
    return torch.mv(left, right[0])[:, None] if len(right) == 1 else left @ right.T


def _columns(matrix: torch.Tensor, columns: slice) -> torch.Tensor:
    """Columns of a symmetric matrix of which what lies above the diagonal is not read, but for these columns' block."""
    return torch.cat([matrix[columns, : columns.start].T, matrix[columns.start :, columns]])


def _diagonal_blocks(matrix: torch.Tensor, width: int) -> torch.Tensor:
    """The blocks of every unit, (units, width, width), a copy."""
    units = len(matrix) // width
    index = torch.arange(units, device=matrix.device)
    return matrix.reshape(units, width, units, width)[index, :, index, :].clone()


def costs_of_blocks(p: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """How much the loss rises when each unit alone goes, (units,): tr((P_gg)⁻¹ K_gg) of the blocks (units, w, w)."""
    if p.shape[-1] == 1:
        return (k / p)[:, 0, 0]
    return torch.cholesky_solve(k, torch.linalg.cholesky(p)).diagonal(dim1=1, dim2=2).sum(1)


@block_scorer("osscar")
def osscar(
    block: Block,
    weight: torch.Tensor,
    stats: ModuleStats,
    *,
    ratio: float,
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> torch.Tensor:
    """The share of a module's output that is lost, with compensation, by the time the unit goes (OSSCAR's order)."""
    order, losses = eliminate(weight, stats.gram, width=block.width, progress=progress, cancel=cancel)
    scores = torch.empty_like(losses)
    scores[order] = losses / losses[-1].clamp(min=torch.finfo(torch.float64).tiny)
    return scores.repeat_interleave(block.width)


@block_scorer("newton_greedy")
def newton_greedy(
    block: Block,
    weight: torch.Tensor,
    stats: ModuleStats,
    *,
    ratio: float,
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> torch.Tensor:
    """The Newton scores of a module's units, dealt out in the order of `eliminate`.

    How much a module loses is what the Newton scores say; which of its units go is what costs the least.
    """
    channels = numerical_score(weight, unit_gram(stats), ratio=ratio)
    values = channels.reshape(block.units, block.width).mean(1).cpu().sort().values
    scores = torch.empty_like(values)
    order, _ = eliminate(weight, stats.gram, width=block.width, progress=progress, cancel=cancel)
    scores[order] = values
    return scores.repeat_interleave(block.width)
