"""ADM's metrics as functions of features: Fréchet distance, inception score, precision and recall."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from numprune.errors import CancelEvent, InputError, NumericalError, Progress, check_cancelled
from numprune.evaluation.images.moments import BLOCK, Array, Moments, checked_rows
from numprune.linalg import to_float64

NEIGHBOUR = 3
"""Neighbour that sets the radius of a point in precision and recall."""

SPLIT = 5000
"""Images per split of the inception score."""


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson and Landau 1982): FID on pooled, sFID on spatial features.

    |mean_a - mean_b|² + tr(A) + tr(B) - 2 tr((AB)^½), where the last trace is the sum of the singular values of
    A^½ B^½, which are real. Nothing is added to the covariances; eigenvalues that rounding cannot tell from 0 count
    as 0, so singular covariances (fewer images than features) lose no accuracy.

    Raises:
        InputError: the two have different numbers of features.
        NumericalError: a covariance has an eigenvalue clearly below 0.
    """
    if len(a.mean) != len(b.mean):
        raise InputError(f"Moments of {len(a.mean)} and of {len(b.mean)} features differ; use one extractor for both.")
    mean, covariance = (x.to(a.mean.device) for x in (b.mean, b.covariance))
    overlap = torch.linalg.svdvals(_root(a.covariance) @ _root(covariance).T).sum()
    distance = (a.mean - mean).square().sum() + a.covariance.trace() + covariance.trace() - 2 * overlap
    return max(0.0, float(distance))


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """R of full rank with RᵀR = covariance, (rank, d)."""
    values, vectors = torch.linalg.eigh(covariance)
    lowest, highest = float(values[0]), float(values[-1])
    if lowest < -1e-4 * abs(highest):
        raise NumericalError(
            f"A covariance has the eigenvalue {lowest:.3g} beside {highest:.3g}; give the covariance of features."
        )
    # An eigenvalue below zero shows how far rounding moved the others, further for statistics kept in float32.
    kept = values > max(len(values) * torch.finfo(torch.float64).eps * highest, -lowest)
    return values[kept].sqrt()[:, None] * vectors[:, kept].T


def inception_score(probabilities: Array, *, split_size: int = SPLIT) -> tuple[float, float]:
    """exp of the mean KL divergence of p(class | image) from its mean over a split (Salimans et al. 2016).

    Args:
        probabilities: of the classes, (n, classes), in the order the images were made.
        split_size: images per split, the last one may have fewer; ADM takes 5000.

    Returns:
        Mean over splits, and standard deviation over them (n in the denominator), NaN for a single split.

    Raises:
        InputError: rows are not probabilities, or split_size is below 1.
        NumericalError: a value is not finite.
    """
    if split_size < 1:
        raise InputError(f"split_size is {split_size}; give at least 1 image.")
    scores = []
    for part in checked_rows(probabilities, "probabilities").split(split_size):
        p = to_float64(part)
        # Half precision rounds each of a thousand classes.
        if bool((p < 0).any()) or bool(((p.sum(1) - 1).abs() > 0.01).any()):
            raise InputError("The rows of probabilities do not sum to 1; give the softmax of the logits.")
        scores.append(math.exp(torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores)) if len(scores) > 1 else math.nan


def precision_recall(
    real: Array,
    generated: Array,
    k: int = NEIGHBOUR,
    *,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    Every point has a ball that reaches to its k-th nearest neighbour in its own set. Precision is the share of
    generated points inside a ball of a real one, recall the share of real points inside a ball of a generated one;
    the surface belongs to the ball. Distances are in float64, one block at a time.

    Args:
        real, generated: features, (m, d) and (n, d), m and n greater than k.
        k: neighbour that sets the radius, the point itself not counted.
        device: where to compute; that of `generated` when None.

    Returns:
        Precision and recall, in [0, 1].

    Raises:
        InputError: the columns differ, k is below 1, or there are not more than k rows.
        NumericalError: a value is not finite.
        Cancelled: `cancel` was set.
    """
    real, generated = checked_rows(real, "real features"), checked_rows(generated, "generated features")
    if real.shape[1] != generated.shape[1]:
        raise InputError(
            f"Real features have {real.shape[1]} columns and generated ones {generated.shape[1]}; use one extractor."
        )
    if k < 1:
        raise InputError(f"k is {k}; give at least 1 neighbour.")
    if min(len(real), len(generated)) <= k:
        raise InputError(
            f"{len(real)} real and {len(generated)} generated images have no {k} neighbours each; use more images."
        )
    device = generated.device if device is None else torch.device(device)
    # Distances are differences of squared norms, which lose least when the points lie about the origin.
    centre = to_float64(real[:BLOCK].to(device)).mean(0)
    total, done = 2 * sum(-(-len(points) // BLOCK) for points in (real, generated)), 0

    def blocks(points: torch.Tensor) -> Iterator[torch.Tensor]:
        for part in points.split(BLOCK):
            check_cancelled(cancel)
            yield to_float64(part.to(device)) - centre

    def told(points: torch.Tensor) -> Iterator[torch.Tensor]:
        nonlocal done
        for block in blocks(points):
            yield block
            done += 1
            if progress is not None:
                progress(done, total, "comparing neighbours")

    def radii(points: torch.Tensor) -> torch.Tensor:
        """Squared, (n,)."""
        squared = []
        for rows in told(points):
            nearest = rows.new_empty(len(rows), 0)
            for columns in blocks(points):
                nearest = torch.cat([nearest, _squared_distances(rows, columns)[0]], 1)
                # The nearest of all is the point itself.
                nearest = nearest.topk(min(k + 1, nearest.shape[1]), largest=False).values
            squared.append(nearest[:, k])
        return torch.cat(squared)

    def covered(points: torch.Tensor, others: torch.Tensor) -> float:
        """Share of points inside a ball of one of the others."""
        limits, inside = radii(others), 0
        for rows in told(points):
            hit = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
            for columns, limit in zip(blocks(others), limits.split(BLOCK), strict=True):
                distances, rounding = _squared_distances(rows, columns)
                hit |= (distances <= limit + rounding).any(1)
            inside += int(hit.sum())
        return inside / len(points)

    return covered(generated, real), covered(real, generated)


def _squared_distances(rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared Euclidean distances, and how far rounding may have moved each, (rows, columns) both."""
    norms = rows.square().sum(1)[:, None] + columns.square().sum(1)
    rounding = norms * (rows.shape[1] * torch.finfo(norms.dtype).eps)
    return torch.addmm(norms, rows, columns.T, alpha=-2), rounding
