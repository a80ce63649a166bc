"""Swapping kept and removed units of a module while that lowers its compensated loss.

This is the local search of OSSCAR (Meng et al., ICML 2024), which follows its greedy elimination
(`numprune.scoring.elimination`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from numprune.errors import InputError, NumericalError
from numprune.linalg import damped_cholesky, to_float64

ROUNDS = 20
"""Swaps of one size at most; OSSCAR's own number of rounds."""
TOLERANCE = 1e-9
"""Share of the loss that a swap must gain, so that rounding makes none."""


def search_swaps(
    weight: torch.Tensor,
    gram: torch.Tensor,
    keep: Sequence[int],
    *,
    width: int = 1,
    damping: float = 0.01,
    swaps: int = 8,
    rounds: int = ROUNDS,
    fixed: Sequence[int] = (),
) -> tuple[tuple[int, ...], float, float]:
    """As many units as `keep` has, swapped for removed ones while the compensated loss falls.

    With H = G + gamma I, gamma = damping * mean(diag G), and W' the compensated weight of the kept units S, the loss
    is ||X W - X_S W'||² + gamma ||δW||². A round removes the `swaps` kept units that alone would cost least, then
    brings back as many of all removed ones, those that alone gain most; when the loss did not fall it is undone and
    `swaps` halved. With one unit, where OSSCAR does the same, all pairs of a kept and a removed one are tried instead.

    Everything follows from one system of linear relations, turned to the kept units by a principal pivot, which costs
    O(in³ + in² out) once and O(in² (swaps * width) + in out) a round.

    Args:
        weight: (out, in), as torch stores it.
        gram: (in, in), XᵀX of the layer's inputs.
        keep: units kept at the start.
        width: consecutive input channels of a unit.
        damping: gamma as a fraction of the mean diagonal of the Gram matrix, not negative.
        swaps: units swapped in one round at first, at least 1.
        rounds: swaps of every size at most; with many, no swap of two units improves the result.
        fixed: units that stay where they are, kept or removed.

    Returns:
        The kept units, ascending, and the loss before and after.

    Raises:
        InputError: shapes, units, width, damping or swaps are wrong.
        NumericalError: inputs are not finite, or H cannot be factorised.
    """
    size = weight.shape[-1]
    if weight.ndim != 2 or gram.shape != (size, size) or width < 1 or size % width:
        raise InputError(
            f"weight {tuple(weight.shape)}, gram {tuple(gram.shape)} and width {width} do not fit;"
            " expected (out, in), (in, in) and a divisor of in."
        )
    units = size // width
    if len(set(keep)) != len(keep) or not all(0 <= unit < units for unit in (*keep, *fixed)):
        raise InputError(f"keep must hold different units from 0 to {units - 1}, and fixed units of these.")
    if not 0 <= damping < float("inf") or swaps < 1 or rounds < 1:
        raise InputError(f"damping is {damping}, swaps {swaps}, rounds {rounds}; give at least 0, 1 and 1.")
    w = to_float64(weight).T
    g = to_float64(gram).to(w.device)
    if not bool(torch.isfinite(w).all() and torch.isfinite(g).all()):
        raise NumericalError("weight or gram has non-finite values; check the checkpoint and the calibration data.")
    if not bool(g.any()):
        return tuple(sorted(keep)), 0.0, 0.0
    h = g.clone()
    h.diagonal().add_(damping * g.diagonal().mean())
    return _Search(h, w, width, keep, fixed).run(swaps, rounds)


class _Search:
    """The state of a search.

    `values` holds, row by row, the compensated weight W' of kept channels and, for removed ones, how their input
    correlates with what the output lacks, H_R: (W - W'). `system` says how these move when removed channels get weights
    or kept ones lose theirs; its diagonal blocks are (H_SS)⁻¹ of kept units and the Schur complements of removed ones.
    """

    def __init__(self, h: torch.Tensor, w: torch.Tensor, width: int, keep: Sequence[int], fixed: Sequence[int]) -> None:
        units = len(h) // width
        self.width = width
        self.system, self.values = h, h @ w
        self.loss = float((w * self.values).sum())
        self.kept = torch.zeros(units, dtype=torch.bool, device=h.device)
        self.free = torch.ones(units, dtype=torch.bool, device=h.device)
        self.free[list(fixed)] = False
        self.move(torch.tensor(sorted(keep), dtype=torch.long, device=h.device))

    def run(self, swaps: int, rounds: int) -> tuple[tuple[int, ...], float, float]:
        before = self.loss
        movable = (int((self.free & side).sum()) for side in (self.kept, ~self.kept))
        swaps = min(swaps, *movable)
        while swaps:
            for _ in range(rounds):
                if not (self.improve_together(swaps) if swaps > 1 else self.improve_by_pair()):
                    break
            swaps //= 2
        return tuple(self.kept.nonzero()[:, 0].tolist()), before, self.loss

    def move(self, units: torch.Tensor) -> None:
        """Take units to the other side: kept ones are removed, removed ones kept."""
        if not len(units):
            return
        inside = channels_of(units, self.width)
        stays = torch.ones(len(self.system), dtype=torch.bool, device=self.system.device)
        stays[inside] = False
        rest = stays.nonzero()[:, 0]
        m, v = self.system, self.values
        across = m[inside[:, None], rest]
        inverse = torch.cholesky_inverse(damped_cholesky(m[inside[:, None], inside], 0.0)[0])
        back, answer = m[rest[:, None], inside] @ inverse, inverse @ v[inside]
        change = float((v[inside] * answer).sum())
        self.loss += change if bool(self.kept[units[0]]) else -change
        self.system, self.values = torch.empty_like(m), torch.empty_like(v)
        self.system[inside[:, None], inside] = inverse
        self.system[inside[:, None], rest] = inverse @ across
        self.system[rest[:, None], inside] = -back
        self.system[rest[:, None], rest] = m[rest[:, None], rest] - back @ across
        self.values[inside] = answer
        self.values[rest] = v[rest] - back @ v[inside]
        self.kept[units] = ~self.kept[units]

    def improve_together(self, swaps: int) -> bool:
        """One round of swapping several units; whether the loss fell. It leaves everything as it was when not."""
        start = self.system, self.values, self.loss, self.kept.clone()
        infinite = torch.tensor(torch.inf, dtype=torch.float64, device=self.system.device)
        costs = torch.where(self.kept & self.free, costs_of(self.system, self.values, self.width), infinite)
        self.move(torch.argsort(costs, stable=True)[:swaps])
        gains = torch.where(~self.kept & self.free, costs_of(self.system, self.values, self.width), -infinite)
        self.move(torch.argsort(gains, stable=True, descending=True)[:swaps])
        if self.loss < start[2] * (1 - TOLERANCE):
            return True
        self.system, self.values, self.loss, self.kept = start
        return False

    def improve_by_pair(self) -> bool:
        """The best swap of one kept unit for one removed one; whether the loss fell."""
        out = (self.kept & self.free).nonzero()[:, 0]
        into = (~self.kept & self.free).nonzero()[:, 0]
        costs = costs_of(self.system, self.values, self.width)
        gains = self._gains_of_channels(out, into) if self.width == 1 else self._gains(out, into)
        changes = costs[out][:, None] - gains
        best = int(changes.argmin())
        if float(changes.flatten()[best]) > -TOLERANCE * self.loss:
            return False
        self.move(out[best // len(into)].reshape(1))
        self.move(into[best % len(into)].reshape(1))
        return True

    def _gains(self, out: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        """What each unit of `into` gains once a unit of `out` is gone, (out, into)."""
        channels, width = channels_of(into, self.width), self.width
        values = self.values[channels].reshape(len(into), width, -1)
        own = channels.reshape(-1, width)
        schur = self.system[own[:, :, None], own[:, None, :]]
        rows = []
        for unit in out:
            inside = channels_of(unit.reshape(1), width)
            factor = torch.linalg.cholesky(self.system[inside][:, inside])
            # (into, width, width): how what a removed unit reads is made up for by the kept one.
            shared = self.system[inside][:, channels].reshape(width, len(into), width).permute(1, 2, 0)
            half = torch.linalg.solve_triangular(factor, shared.transpose(1, 2), upper=False)
            lost = torch.linalg.solve_triangular(factor, self.values[inside], upper=False)
            lacking = values + half.transpose(1, 2) @ lost
            solved = torch.linalg.solve_triangular(
                torch.linalg.cholesky(schur + half.transpose(1, 2) @ half), lacking, upper=False
            )
            rows.append(solved.square().sum((1, 2)))
        return torch.stack(rows)

    def _gains_of_channels(self, out: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        """The same for units of one channel, all pairs at once."""
        kept, removed = self.values[out], self.values[into]
        own = self.system.diagonal()
        shared = self.system[out][:, into]
        share = shared / own[out][:, None]
        squares = removed.square().sum(1) + 2 * share * (kept @ removed.T) + share**2 * kept.square().sum(1)[:, None]
        return squares / (own[into] + shared * share)


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
