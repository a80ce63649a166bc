"""What generated images are compared with: statistics of real ones, from images or from ADM's npz files."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from numprune.errors import CancelEvent, InputError, Progress
from numprune.evaluation.images.features import BATCH, METRICS, Extractor, Images, check_metrics, gather
from numprune.evaluation.images.inception import INCEPTION
from numprune.evaluation.images.moments import Moments


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
    check_metrics(metrics)
    gathered = gather(images, extractor, metrics, required=False, total=total, progress=progress, cancel=cancel)
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
    check_metrics(metrics)
    moments: dict[str, Moments] = {}
    with _open_npz(path) as archive:
        names = {Path(name).stem for name in archive.namelist()}
        if extractor.name == INCEPTION and "mu" in names:
            for metric, mean, covariance in (("fid", "mu", "sigma"), ("sfid", "mu_s", "sigma_s")):
                if metric in metrics:
                    moments[metric] = Moments.given(*(_read_array(archive, path, name) for name in (mean, covariance)))
    others = [metric for metric in metrics if metric != "is" and metric not in moments]
    computed = Reference(extractor.name)
    if others:
        computed = reference_from_images(
            _npz_images(path), extractor, others, total=_npz_count(path), progress=progress, cancel=cancel
        )
    return Reference(
        extractor=extractor.name,
        pool=moments.get("fid", computed.pool),
        spatial=moments.get("sfid", computed.spatial),
        features=computed.features,
    )


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
