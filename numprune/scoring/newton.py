"""Newton numerical score (Shen et al., AAAI 2025, section 3.2 and Algorithm 1).

For the last linear layer of a module, with weight W (in the paper's X W convention D x D'), Gram matrix
XᵀX (D x D) and a relaxed mask z in R^D, the score minimises

    f(z) = 1/2 ||X W - X (z ∘ W)||²_F + penalty/2 (1ᵀz - r)²,        r = (1 - ratio) D.

With A = (W Wᵀ) ∘ (XᵀX) the gradient is A (z - 1) + penalty (1ᵀz - r) 1 and the Hessian A + penalty 11ᵀ.
f is quadratic, so its minimum has a closed form, z = 1 - c A⁻¹1; the T-step loop of the paper and the
solve inside the box [0, 1] are here under their own names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch

from numprune.calibration.statistics import ModuleStats
from numprune.errors import InputError, NumericalError
from numprune.linalg import all_finite, damped_cholesky, lower_product, mirror_lower_, to_float64
from numprune.plan.keys import ModuleKey
from numprune.plan.recipe import check_ratio
from numprune.scoring.registry import scorer

Solver = Literal["closed_form", "newton", "boxed"]

_EXACT = 2048
"""Most channels for which W Wᵀ of a float32 weight is formed in float64. Above, where that product would cost more
than the factorisation, it is formed in float32; half-precision products are exact there."""
_PATIENCE = 10
"""Steps of "boxed" that may move many variables at a time without getting better."""


def numerical_score(
    weight: torch.Tensor,
    gram: torch.Tensor,
    *,
    ratio: float,
    penalty: float = 1.0,
    solver: Solver = "closed_form",
    steps: int = 50,
    damping: float = 1e-8,
) -> torch.Tensor:
    """Score of every input channel of a linear layer; higher means more worth keeping.

    Args:
        weight: (out, in), as torch stores it.
        gram: (in, in), XᵀX of the layer's inputs, in any positive scale. The paper bounds the norm of X by 1;
            dividing by the trace does that, and makes `penalty` mean the same in every module.
        ratio: the share of channels to remove, in [0, 1).
        penalty: the weight of the sparsity constraint, positive. As it grows the mean score tends to 1 - ratio.
        solver: "closed_form", one Cholesky factorisation; "newton", Algorithm 1 of the paper from z = 1 with
            `steps` steps, each factorising the Hessian; "boxed", the minimum under 0 <= z <= 1, where the KKT
            conditions hold, in at most `steps` steps.
        steps: T of Algorithm 1, or the most steps of "boxed".
        damping: added to the diagonal of A, as a fraction of its mean; raised tenfold until A can be factorised.

    Returns:
        (in,) float64. Channels that contribute nothing (a zero row of A) score 1 below the lowest of the others
        or of 0.

    Raises:
        InputError: shapes, ratio, penalty, solver, steps or damping are wrong.
        NumericalError: inputs are not finite, A cannot be factorised, or "boxed" did not reach its tolerance.
    """
    _validate(weight, gram, ratio, penalty, solver, steps, damping)
    exact = to_float64(weight) if weight.shape[1] <= _EXACT else weight
    a = to_float64(lower_product(exact)).mul_(to_float64(gram))
    # What only the caller passed on is let go before the factorisation, which takes most.
    del exact, gram
    alive = a.diagonal() > 0
    if not bool(alive.any()):
        return torch.zeros(a.shape[0], dtype=torch.float64, device=a.device)
    if not bool(alive.all()):
        a = a[alive][:, alive]
    excess = ratio * a.shape[0]
    z = 1 - _SOLVERS[solver](a, excess, penalty, steps, damping)
    if not bool(torch.isfinite(z).all()):
        raise NumericalError(f"The {solver} score is not finite; use more calibration samples or a higher damping.")
    if bool(alive.all()):
        return z
    scores = torch.full(alive.shape, float(z.min().clamp(max=0)) - 1, dtype=torch.float64, device=z.device)
    scores[alive] = z
    return scores


def _validate(
    weight: torch.Tensor, gram: torch.Tensor, ratio: float, penalty: float, solver: str, steps: int, damping: float
) -> None:
    if weight.ndim != 2 or gram.shape != (weight.shape[1], weight.shape[1]):
        raise InputError(
            f"weight {tuple(weight.shape)} and gram {tuple(gram.shape)} do not fit; expected (out, in) and (in, in)."
        )
    check_ratio(ratio)
    if not (math.isfinite(penalty) and penalty > 0):
        raise InputError(f"penalty is {penalty}; give a positive number.")
    if solver not in _SOLVERS:
        raise InputError(f"solver '{solver}' is not known; use {', '.join(_SOLVERS)}.")
    if steps < 1:
        raise InputError(f"steps is {steps}; give at least 1.")
    if not 0 <= damping < math.inf:
        raise InputError(f"damping is {damping}; give 0 or a positive fraction such as 1e-8.")
    for name, tensor in (("weight", weight), ("gram", gram)):
        if not all_finite(tensor):
            raise NumericalError(f"{name} has non-finite values; check the checkpoint and the calibration data.")


# The solvers work on u = 1 - z, with gradient A u - penalty (excess - 1ᵀu) 1 and excess = D - r. Of A they get
# the lower triangle, which is all that one factorisation reads.


def _closed_form(a: torch.Tensor, excess: float, penalty: float, steps: int, damping: float) -> torch.Tensor:
    factor, _ = damped_cholesky(a, damping, raise_damping=True)
    direction = _solve(factor, torch.ones_like(a[0]))
    return direction * (penalty * excess / (1 + penalty * float(direction.sum())))


def _newton(a: torch.Tensor, excess: float, penalty: float, steps: int, damping: float) -> torch.Tensor:
    a = _damped(a, damping)
    u = torch.zeros_like(a[0])
    for _ in range(steps):
        gradient = a @ u - penalty * (excess - u.sum())
        # f is quadratic, so the Hessian is the same in every step; Algorithm 1 factorises it each time.
        factor, _ = damped_cholesky(a + penalty, 0.0, raise_damping=True)
        u = u - _solve(factor, gradient)
    return u


def _boxed(a: torch.Tensor, excess: float, penalty: float, steps: int, damping: float) -> torch.Tensor:
    """Block principal pivoting (Júdice and Pires 1994): guess which variables are at 0 and at 1, solve for the rest,
    move every variable that contradicts the guess; one at a time when moving all has stopped to help, which ends."""
    a = _damped(a, damping)
    at_zero, at_one = torch.zeros_like(a[0], dtype=torch.bool), torch.zeros_like(a[0], dtype=torch.bool)
    fewest, patience = a.shape[0] + 1, _PATIENCE
    for _ in range(steps):
        free = ~(at_zero | at_one)
        pull = a[:, at_one].sum(1)
        u = at_one.to(a.dtype)
        # On the free variables A u = mu 1, where mu = penalty (excess - 1ᵀu) holds u; both are linear in mu.
        excess_left = excess - float(at_one.sum())
        mu = penalty * excess_left
        if bool(free.any()):
            factor, _ = damped_cholesky(a[free][:, free], 0.0)
            right = torch.stack([torch.ones_like(pull[free]), -pull[free]], dim=1)
            slope, offset = torch.cholesky_solve(right, factor).unbind(1)
            mu = penalty * (excess_left - float(offset.sum())) / (1 + penalty * float(slope.sum()))
            u[free] = mu * slope + offset
        gradient = a @ u - mu
        slack = 1e-9 * float((a.diagonal() * u.abs()).max().clamp(min=abs(mu)))
        below, above = free & (u < -1e-12), free & (u > 1 + 1e-12)
        wrong = below | above | (at_zero & (gradient < -slack)) | (at_one & (gradient > slack))
        count = int(wrong.sum())
        if not count:
            return u.clamp_(0, 1)
        if count < fewest:
            fewest, patience = count, _PATIENCE
        elif patience:
            patience -= 1
        else:
            wrong[: int(wrong.nonzero()[-1])] = False
        at_zero, at_one = (at_zero & ~wrong) | (below & wrong), (at_one & ~wrong) | (above & wrong)
    raise NumericalError(f"The boxed score missed its tolerance after {steps} steps; raise steps or damping.")


def _damped(a: torch.Tensor, damping: float) -> torch.Tensor:
    """All of A, with the damping its factorisation needs added."""
    _, used = damped_cholesky(a, damping, raise_damping=True)
    a = mirror_lower_(a.clone())
    a.diagonal().add_(used * a.diagonal().mean())
    return a


def _solve(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cholesky_solve(right[:, None], factor)[:, 0]


_SOLVERS: dict[str, Callable[[torch.Tensor, float, float, int, float], torch.Tensor]] = {
    "closed_form": _closed_form,
    "newton": _newton,
    "boxed": _boxed,
}


def unit_gram(stats: ModuleStats) -> torch.Tensor:
    """XᵀX of X scaled to Frobenius norm 1, as the paper bounds its norm; zeros stay zeros."""
    return stats.gram / stats.gram.trace().clamp(min=torch.finfo(torch.float64).tiny)


@scorer("newton")
def newton(weight: torch.Tensor, stats: ModuleStats, *, ratio: float, key: ModuleKey) -> torch.Tensor:
    """The numerical score in closed form."""
    return numerical_score(weight, unit_gram(stats), ratio=ratio)


@scorer("newton_loop")
def newton_loop(weight: torch.Tensor, stats: ModuleStats, *, ratio: float, key: ModuleKey) -> torch.Tensor:
    """The numerical score by Algorithm 1 of the paper, 50 steps."""
    return numerical_score(weight, unit_gram(stats), ratio=ratio, solver="newton")


@scorer("newton_boxed")
def newton_boxed(weight: torch.Tensor, stats: ModuleStats, *, ratio: float, key: ModuleKey) -> torch.Tensor:
    """The numerical score under 0 <= z <= 1."""
    return numerical_score(weight, unit_gram(stats), ratio=ratio, solver="boxed", steps=200)
