"""Linear algebra shared by calibration, scoring and compensation: symmetric products and damped Cholesky."""

from __future__ import annotations

import torch

from numprune.errors import NumericalError

BLOCK = 1024
"""Columns per block of a symmetric product; below it one matrix product is faster than its lower half."""


def lower_product(x: torch.Tensor) -> torch.Tensor:
    """Lower blocks of xᵀx; what lies above the diagonal blocks is zero.

    Only the lower half is computed, which halves the work for wide x. Half-precision products are exact in
    float32, so on CUDA they are accumulated there without a cast of x first.

    Args:
        x: (rows, columns).

    Returns:
        (columns, columns), float64 for float64 x and float32 otherwise.
    """
    columns = x.shape[1]
    half = x.dtype in (torch.float16, torch.bfloat16)
    on_tensor_cores = half and x.is_cuda
    if half and not on_tensor_cores:
        x = x.float()
    result_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = torch.zeros(columns, columns, dtype=result_dtype, device=x.device)
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        left, right = x[:, begin:end].T, x[:, :end]
        if on_tensor_cores:
            out[begin:end, :end] = torch.mm(left, right, out_dtype=torch.float32)
        else:
            out[begin:end, :end] = left @ right
    return out


def mirror_lower_(matrix: torch.Tensor) -> torch.Tensor:
    """Copy the lower triangle over the upper one, in place and block by block."""
    size = matrix.shape[0]
    for begin in range(0, size, BLOCK):
        end = min(begin + BLOCK, size)
        matrix[:begin, begin:end] = matrix[begin:end, :begin].T
        diagonal = matrix[begin:end, begin:end]
        diagonal.copy_(diagonal.tril() + diagonal.tril(-1).T)
    return matrix


def symmetric_product(x: torch.Tensor) -> torch.Tensor:
    """xᵀx, (columns, columns), in float64 for float64 x and float32 otherwise."""
    return mirror_lower_(lower_product(x))


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    # A sum needs no temporary of the tensor's size. It can overflow where no value does, hence the second look.
    total = tensor.sum(dtype=torch.float32 if tensor.dtype.itemsize < 4 else None)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def float64_device(device: torch.device) -> torch.device:
    """The device itself, or the CPU where it has no float64 (MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64, on the CPU when its device has no float64 (MPS)."""
    return tensor.to(float64_device(tensor.device)).to(torch.float64)


def damped_cholesky(matrix: torch.Tensor, damping: float, *, raise_damping: bool = False) -> tuple[torch.Tensor, float]:
    """Cholesky factor of matrix + damping * mean(diagonal) * I, and the damping that was used.

    Args:
        matrix: (n, n) positive semi-definite, float64; its lower triangle is read, nothing is changed.
        damping: fraction of the mean of the diagonal.
        raise_damping: multiply the damping by ten, up to 1, until the factorisation succeeds.

    Raises:
        NumericalError: when no factorisation succeeds.
    """
    mean = matrix.diagonal().mean()
    while True:
        factor = matrix.clone()
        factor.diagonal().add_(damping * mean)
        info = torch.empty((), dtype=torch.int32, device=matrix.device)
        # In the place of what is factorised: these are the largest matrices there are.
        torch.linalg.cholesky_ex(factor, out=(factor, info))
        if int(info) == 0 and bool(torch.isfinite(factor.diagonal()).all()):
            return factor, damping
        if not raise_damping or damping >= 1:
            raise NumericalError(
                f"A Gram matrix of size {matrix.shape[0]} cannot be factorised with damping {damping:g};"
                " use more calibration samples, a higher damping, or check the activations for overflow."
            )
        damping = min(max(damping * 10, 1e-12), 1.0)
