"""Mean and covariance of features, gathered batch by batch (ADM's statistics, Dhariwal and Nichol 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from numprune.errors import InputError, NumericalError
from numprune.linalg import all_finite, symmetric_product, to_float64

BLOCK = 2048
"""Rows in float64 at once."""

Array = torch.Tensor | np.ndarray


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features.

    Attributes:
        mean: (d,) float64.
        covariance: (d, d) float64, with n - 1 in the denominator.
        n: rows they are of; None when that is not told.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    n: int | None = None

    @classmethod
    def of(cls, features: Array) -> Moments:
        """Of features (n, d); raises what `MomentsAccumulator` raises."""
        accumulator = MomentsAccumulator()
        accumulator.add(features)
        return accumulator.finish()

    @classmethod
    def given(cls, mean: Array, covariance: Array) -> Moments:
        """From statistics that were computed elsewhere.

        Raises:
            InputError: the shapes are not (d,) and (d, d), or the covariance is not symmetric.
            NumericalError: a value is not finite.
        """
        mean, covariance = (to_float64(torch.as_tensor(x)) for x in (mean, covariance))
        if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
            shapes = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
            raise InputError(f"A mean and a covariance have the shapes {shapes}; give (d,) and (d, d).")
        if not (all_finite(mean) and all_finite(covariance)):
            raise NumericalError("A mean or a covariance is not finite; compute it again from finite features.")
        # Single precision rounds the two halves alike, but not every program computes them alike.
        if bool((covariance - covariance.T).abs().max() > 1e-4 * covariance.abs().max()):
            raise InputError("A covariance is not symmetric; give the covariance of features, as numpy.cov has it.")
        return cls(mean, covariance)


class MomentsAccumulator:
    """Running mean and sum of squares about it, in float64, batch by batch.

    Batches are merged with the update of Chan, Golub and LeVeque (1983), which keeps its accuracy where the mean
    is large beside the spread. Memory is that of one (d, d) matrix, however many rows are added.

    Attributes:
        n: rows added so far.
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean = torch.zeros(0)
        self._scatter = torch.zeros(0, 0)

    def add(self, features: Array) -> None:
        """Add rows (n, d) of any floating dtype.

        Raises:
            InputError: the array is not a matrix, or has other columns than what was added before.
            NumericalError: a value is not finite; nothing was added then.
        """
        for part in checked_rows(features, "features").split(BLOCK):
            rows = to_float64(part)
            mean = rows.mean(0)
            self._absorb(len(rows), mean, symmetric_product(rows - mean))

    def merge(self, other: MomentsAccumulator) -> None:
        """Add all rows of another accumulator, which stays as it is; raises InputError when columns differ."""
        if other.n:
            self._absorb(other.n, other._mean, other._scatter.clone())

    def finish(self) -> Moments:
        """Moments of all rows; raises InputError when there are fewer than 2."""
        if self.n < 2:
            raise InputError(f"A covariance needs at least 2 images; {self.n} cannot give one, use more.")
        return Moments(self._mean, self._scatter / (self.n - 1), self.n)

    def _absorb(self, n: int, mean: torch.Tensor, scatter: torch.Tensor) -> None:
        if not self.n:
            self.n, self._mean, self._scatter = n, mean, scatter
            return
        if len(mean) != len(self._mean):
            raise InputError(f"Features have {len(mean)} columns after {len(self._mean)}; use one extractor.")
        total = self.n + n
        step = mean.to(self._mean.device) - self._mean
        self._scatter += scatter.to(self._scatter.device)
        self._scatter.addr_(step, step, alpha=self.n * n / total)
        self._mean = self._mean + step * (n / total)
        self.n = total


def checked_rows(values: Array, what: str) -> torch.Tensor:
    """Values as a matrix with at least one row and one column, all finite."""
    matrix = torch.as_tensor(values).detach()
    if matrix.ndim != 2 or not matrix.numel():
        raise InputError(f"The {what} have the shape {tuple(matrix.shape)}; give one row for each image.")
    if not all_finite(matrix):
        raise NumericalError(f"The {what} are not finite; check the images and run the extractor in float32.")
    return matrix
