"""Image metrics over a pluggable feature extractor, with ADM's definitions (Dhariwal and Nichol 2021)."""

from __future__ import annotations

import math
import pickle
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from numprune.errors import CancelEvent, InputError, LoadError, NumericalError, Progress, check_cancelled
from numprune.linalg import all_finite, symmetric_product, to_float64
from numprune.models.placement import resolve_device

METRICS = ("fid", "sfid", "is", "precision", "recall")
"""What can be measured: Fréchet distance of pooled and of spatial features, inception score, precision, recall."""

INCEPTION = "inception-v3"
"""Name of the extractor that published values and the statistics in ADM's reference batches belong to."""

NEIGHBOUR = 3
"""Neighbour that sets the radius of a point in precision and recall."""

SPLIT = 5000
"""Images per split of the inception score."""

BLOCK = 2048
"""Rows in float64 at once; distances are computed between two such blocks."""

BATCH = 64
"""Images per call of an extractor, where the caller does not cut them into batches."""

NEEDS = {"fid": "pool", "sfid": "spatial", "is": "probabilities", "precision": "pool", "recall": "pool"}
"""The attribute of `Features` that a metric is computed from."""

KINDS = {"pool": "pooled features", "spatial": "spatial features", "probabilities": "class probabilities"}
"""The attributes of `Features` in words."""

Array = torch.Tensor | np.ndarray
Images = Array | Iterable[Array]


@dataclass(frozen=True)
class Features:
    """What an extractor finds in n images.

    Attributes:
        pool: one vector per image, (n, d).
        spatial: features that keep their places, flattened, (n, s); None when there are none.
        probabilities: of the classes, (n, classes); None when there are none.
    """

    pool: torch.Tensor
    spatial: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None


class Extractor(Protocol):
    """Turns images into features; its name labels every value measured with it."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: torch.Tensor, /) -> Features:
        """Features of images (n, 3, height, width), floats in [0, 1]."""
        ...


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
        for part in _matrix(features, "features").split(BLOCK):
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


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson and Landau 1982): FID on pooled, sFID on spatial features.

    |mean_a - mean_b|² + tr(A) + tr(B) - 2 tr((AB)^½), where the last trace is the sum of the singular values of
    A^½ B^½, so nothing complex can arise. Nothing is added to the covariances; eigenvalues that rounding cannot
    tell from 0 count as 0, so singular covariances (fewer images than features) lose no accuracy.

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
    # What is below zero shows how far rounding moved the others, which is more than here for a file in float32.
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
    for part in _matrix(probabilities, "probabilities").split(split_size):
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

    Every point has a ball that reaches to its k-th nearest neighbour among its own kind. Precision is the share
    of generated points inside a ball of a real one, recall the share of real points inside a ball of a generated
    one; the surface belongs to the ball. Distances are in float64, one block at a time.

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
    real, generated = _matrix(real, "real features"), _matrix(generated, "generated features")
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
        found = []
        for rows in told(points):
            nearest = rows.new_empty(len(rows), 0)
            for columns in blocks(points):
                nearest = torch.cat([nearest, _squared_distances(rows, columns)[0]], 1)
                # The nearest of all is the point itself.
                nearest = nearest.topk(min(k + 1, nearest.shape[1]), largest=False).values
            found.append(nearest[:, k])
        return torch.cat(found)

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


def _matrix(values: Array, what: str) -> torch.Tensor:
    """Values as a matrix with at least one row and one column, all finite."""
    matrix = torch.as_tensor(values).detach()
    if matrix.ndim != 2 or not matrix.numel():
        raise InputError(f"The {what} have the shape {tuple(matrix.shape)}; give one row for each image.")
    if not all_finite(matrix):
        raise NumericalError(f"The {what} are not finite; check the images and run the extractor in float32.")
    return matrix


@dataclass(frozen=True)
class Reference:
    """What generated images are compared with.

    Attributes:
        extractor: name of the extractor the statistics belong to.
        pool, spatial: moments of pooled and of spatial features; None when they were not asked for or not given.
        features: pooled features for precision and recall, (m, d); None when they were not asked for.
    """

    extractor: str
    pool: Moments | None = None
    spatial: Moments | None = None
    features: torch.Tensor | None = None

    def covers(self, metric: str) -> bool:
        """Whether it has what a metric needs."""
        has = {"fid": self.pool, "sfid": self.spatial, "precision": self.features, "recall": self.features}
        return metric == "is" or has[metric] is not None


@dataclass(frozen=True)
class ImageMetrics:
    """Values of the metrics.

    Attributes:
        extractor: name of the feature extractor; only values of one extractor can be compared, and only those of
            `INCEPTION` with published ones.
        n: generated images.
        values: by metric, in the order they were asked for; precision and recall in [0, 1].
        is_std: standard deviation of the inception score over splits; NaN for one split, None when not measured.
    """

    extractor: str
    n: int
    values: dict[str, float]
    is_std: float | None = None

    def to_dict(self) -> dict[str, Any]:
        std = None if self.is_std is None or math.isnan(self.is_std) else self.is_std
        return {"extractor": self.extractor, "n": self.n, "values": dict(self.values), "is_std": std}


def image_metrics(
    images: Images,
    extractor: Extractor,
    reference: Reference | None = None,
    metrics: Sequence[str] = METRICS,
    *,
    total: int | None = None,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> ImageMetrics:
    """Compare generated images with a reference: ADM's FID, sFID, inception score, precision and recall.

    Memory holds pooled features and probabilities of all images, as the extractor gives them, and one batch.

    Args:
        images: (n, 3, height, width) floats in [0, 1], at once or as batches drawn one by one.
        reference: from `reference_from_images` or `reference_from_npz`; the inception score needs none.
        metrics: any of `METRICS`.
        total: images to come, for `progress`, where `images` does not tell.

    Raises:
        InputError: a metric is unknown, or the extractor or the reference cannot give it; the images are not of
            that form, or too few.
        NumericalError: features are not finite.
        Cancelled: `cancel` was set.
    """
    _check_metrics(metrics)
    for metric in metrics:
        if metric != "is" and reference is None:
            raise InputError(f"{metric} compares with real images; give a reference or leave it out.")
        if reference is not None and not reference.covers(metric):
            raise InputError(f"The reference has nothing to measure {metric} with; make it for that metric too.")
    if reference is not None and reference.extractor != extractor.name:
        raise InputError(
            f"The reference belongs to {reference.extractor}, not to {extractor.name}; use one extractor for both."
        )
    gathered = _Gathered(metrics)
    for features in _extract(images, extractor, total, progress, cancel):
        for metric in metrics:
            if getattr(features, NEEDS[metric]) is None:
                raise InputError(
                    f"{extractor.name} gives no {KINDS[NEEDS[metric]]}, so {metric} cannot be measured; leave it out."
                )
        gathered.add(features)
    values: dict[str, float] = {}
    std = None
    if "fid" in metrics:
        values["fid"] = frechet_distance(gathered.pool.finish(), reference.pool)
    if "sfid" in metrics:
        values["sfid"] = frechet_distance(gathered.spatial.finish(), reference.spatial)
    if "is" in metrics:
        values["is"], std = inception_score(torch.cat(gathered.probabilities))
    if "precision" in metrics or "recall" in metrics:
        generated = torch.cat(gathered.rows)
        values["precision"], values["recall"] = precision_recall(
            reference.features, generated, device=gathered.device, progress=progress, cancel=cancel
        )
    return ImageMetrics(extractor.name, gathered.n, {metric: values[metric] for metric in metrics}, std)


def reference_from_images(
    images: Images,
    extractor: Extractor,
    metrics: Sequence[str] = METRICS,
    *,
    total: int | None = None,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Reference:
    """A reference from real images; what the extractor does not give is left out.

    Args:
        images, total: as in `image_metrics`.
        metrics: what the reference will be used for.

    Raises:
        InputError, NumericalError, Cancelled: as in `image_metrics`.
    """
    _check_metrics(metrics)
    gathered = _Gathered(metrics)
    for features in _extract(images, extractor, total, progress, cancel):
        gathered.add(features)
    return Reference(
        extractor=extractor.name,
        pool=gathered.pool.finish() if "fid" in metrics else None,
        spatial=gathered.spatial.finish() if gathered.spatial.n else None,
        features=torch.cat(gathered.rows) if gathered.rows else None,
    )


def reference_from_npz(
    path: str | Path,
    extractor: Extractor,
    metrics: Sequence[str] = METRICS,
    *,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Reference:
    """A reference from an npz file in ADM's format, such as VIRTUAL_imagenet256_labeled.npz.

    The file holds images as `arr_0`, uint8 (n, height, width, 3), and may hold the moments of a whole data set as
    `mu` and `sigma` (pooled), `mu_s` and `sigma_s` (spatial). Those are Inception's: another extractor computes
    its own from the images. Images are read batch by batch, and not at all when no metric needs them.

    Raises:
        InputError: the file cannot be read, lacks an array that a metric needs, or holds one of another form.
        NumericalError: the moments or the features are not finite.
        Cancelled: `cancel` was set.
    """
    _check_metrics(metrics)
    moments: dict[str, Moments] = {}
    with _open_npz(path) as archive:
        names = {Path(name).stem for name in archive.namelist()}
        if extractor.name == INCEPTION and "mu" in names:
            for metric, mean, covariance in (("fid", "mu", "sigma"), ("sfid", "mu_s", "sigma_s")):
                if metric in metrics:
                    moments[metric] = Moments.given(*(_read_array(archive, path, name) for name in (mean, covariance)))
    others = [metric for metric in metrics if metric != "is" and metric not in moments]
    found = Reference(extractor.name)
    if others:
        found = reference_from_images(
            _npz_images(path), extractor, others, total=_npz_count(path), progress=progress, cancel=cancel
        )
    return Reference(
        extractor=extractor.name,
        pool=moments.get("fid", found.pool),
        spatial=moments.get("sfid", found.spatial),
        features=found.features,
    )


class Inception:
    """Inception-v3 of 2015-12-05 as ADM uses it: what published FID, sFID, IS, precision and recall are measured on.

    Pooled features are pool_3 (2048), spatial ones the first 7 channels of mixed_6/conv (17 x 17 x 7 = 2023, the
    channel running fastest, as the reference batches have them), probabilities the softmax of the logits without
    their bias (1008). Images are rounded to 8 bits, as the reference images are.

    Args:
        module: torch-fidelity's FeatureExtractorInceptionV3 for the features "2048" and "logits_unbiased".
    """

    name = INCEPTION

    def __init__(self, module: nn.Module):
        self.module = module

    @classmethod
    def load(cls, device: str = "auto") -> Inception:
        """With torch-fidelity's published weights, which are downloaded once and kept in torch's hub folder.

        Raises:
            LoadError: torch-fidelity is not installed, or its weights cannot be had.
        """
        target = resolve_device(device)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:
            raise LoadError(
                f"Inception features need torch-fidelity ({error}); install it with pip install 'numprune[images]'."
            ) from error
        try:
            module = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], verbose=False)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            place = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
            raise LoadError(
                f"The weights of Inception cannot be had ({error}); connect to the network or put them at {place}."
            ) from error
        return cls(module.to(target))

    def __call__(self, images: torch.Tensor, /) -> Features:
        device = next(self.module.parameters()).device
        pixels = (images.to(device).float() * 255).round().to(torch.uint8)
        maps: list[torch.Tensor] = []
        hook = self.module.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, output: maps.append(output))
        try:
            pool, logits = self.module(pixels)
        finally:
            hook.remove()
        return Features(pool, maps[0][:, :7].permute(0, 2, 3, 1).flatten(1), logits.softmax(1))


class _Gathered:
    """What the metrics need of all images, on the CPU where it grows with their number."""

    def __init__(self, metrics: Sequence[str]):
        self.metrics = metrics
        self.n = 0
        self.pool, self.spatial = MomentsAccumulator(), MomentsAccumulator()
        self.rows: list[torch.Tensor] = []
        self.probabilities: list[torch.Tensor] = []
        self.device = torch.device("cpu")

    def add(self, features: Features) -> None:
        self.n += len(features.pool)
        self.device = features.pool.device
        if "fid" in self.metrics:
            self.pool.add(features.pool)
        if "sfid" in self.metrics and features.spatial is not None:
            self.spatial.add(features.spatial)
        if "precision" in self.metrics or "recall" in self.metrics:
            self.rows.append(features.pool.cpu())
        if "is" in self.metrics and features.probabilities is not None:
            self.probabilities.append(features.probabilities.cpu())


def _check_metrics(metrics: Sequence[str]) -> None:
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise InputError(f"{', '.join(map(repr, unknown)) or 'No metric'} was asked for; choose from {METRICS}.")


def _extract(
    images: Images,
    extractor: Extractor,
    total: int | None,
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> Iterator[Features]:
    """Features of the images, batch by batch; at least one."""
    if isinstance(images, Array):
        total, images = len(images), torch.as_tensor(images).split(BATCH)
    done = 0
    for batch in images:
        check_cancelled(cancel)
        pixels = torch.as_tensor(batch)
        form = pixels.ndim == 4 and pixels.shape[1] == 3 and pixels.numel() and pixels.is_floating_point()
        # NaN is in no range.
        if not form or not (float(pixels.min()) >= 0 and float(pixels.max()) <= 1):
            raise InputError(
                f"Images of shape {tuple(pixels.shape)} and type {pixels.dtype} cannot be measured;"
                " give (n, 3, height, width) floats in [0, 1]."
            )
        with torch.inference_mode():
            features = extractor(pixels)
        for kind, words in KINDS.items():
            values = getattr(features, kind)
            if values is not None and len(_matrix(values, f"{words} of {extractor.name}")) != len(pixels):
                raise InputError(
                    f"{extractor.name} gives {len(values)} rows of {words} for {len(pixels)} images; return one each."
                )
        yield features
        done += len(pixels)
        if progress is not None:
            progress(done, max(done, total or 0), "extracting features")
    if not done:
        raise InputError("There are no images to measure; give at least one.")


@contextmanager
def _open_npz(path: str | Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as an npz file ({error}); give one in ADM's format.") from error


@contextmanager
def _open_array(archive: zipfile.ZipFile, path: str | Path, name: str) -> Iterator[Any]:
    if f"{name}.npy" not in archive.namelist():
        raise InputError(f"{path} has no array {name}; give an npz file in ADM's format.")
    with archive.open(f"{name}.npy") as member:
        yield member


def _read_array(archive: zipfile.ZipFile, path: str | Path, name: str) -> np.ndarray:
    with _open_array(archive, path, name) as member:
        values = np.lib.format.read_array(member, allow_pickle=False)
    if values.dtype.kind != "f":
        raise InputError(f"{name} in {path} holds {values.dtype}; give floating-point numbers.")
    return values


def _npz_shape(member: Any, path: str | Path) -> tuple[int, ...]:
    """Shape of the images in arr_0, whose header is read."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if fortran or dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        raise InputError(f"arr_0 in {path} holds {dtype} {shape}; give images as uint8 (n, height, width, 3).")
    return shape


def _npz_count(path: str | Path) -> int:
    with _open_npz(path) as archive, _open_array(archive, path, "arr_0") as member:
        return _npz_shape(member, path)[0]


def _npz_images(path: str | Path) -> Iterator[torch.Tensor]:
    """Images in arr_0, (n, 3, height, width) floats in [0, 1]; never more than a batch in memory."""
    with _open_npz(path) as archive, _open_array(archive, path, "arr_0") as member:
        count, *shape = _npz_shape(member, path)
        for begin in range(0, count, BATCH):
            size = (min(BATCH, count - begin), *shape)
            data = member.read(math.prod(size))
            if len(data) < math.prod(size):
                raise InputError(f"arr_0 in {path} ends after {begin} of {count} images; fetch the file again.")
            pixels = torch.from_numpy(np.frombuffer(data, np.uint8).reshape(size).copy())
            yield pixels.permute(0, 3, 1, 2).float() / 255
