"""Features of images by a pluggable extractor, and what each metric needs of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from numprune.errors import CancelEvent, InputError, Progress, check_cancelled
from numprune.evaluation.images.moments import Array, MomentsAccumulator, checked_rows

METRICS = ("fid", "sfid", "is", "precision", "recall")
"""What can be measured: Fréchet distance of pooled and of spatial features, inception score, precision, recall."""

NEEDS = {"fid": "pool", "sfid": "spatial", "is": "probabilities", "precision": "pool", "recall": "pool"}
"""The attribute of `Features` that a metric is computed from."""

KINDS = {"pool": "pooled features", "spatial": "spatial features", "probabilities": "class probabilities"}
"""The attributes of `Features` in words."""

BATCH = 64
"""Images per call of an extractor, where the caller does not cut them into batches."""

Images = Array | Iterable[Array]


@dataclass(frozen=True)
class Features:
    """Features of n images.

    Attributes:
        pool: one vector per image, (n, d).
        spatial: features by position, flattened, (n, s); None when there are none.
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


class GatheredFeatures:
    """The features of all images that some metrics need, on the CPU where they grow with the number of images."""

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


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise InputError unless these are metrics, at least one."""
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise InputError(f"{', '.join(map(repr, unknown)) or 'No metric'} was asked for; choose from {METRICS}.")


def gather(
    images: Images,
    extractor: Extractor,
    metrics: Sequence[str],
    *,
    required: bool,
    total: int | None,
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> GatheredFeatures:
    """The features that the metrics need, of all images.

    Args:
        required: whether every metric must be had; else what the extractor does not give is left out.
        total: images to come, for `progress`, where `images` does not tell.

    Raises:
        InputError: a required feature is missing, there is no image, or images or features have another form.
        NumericalError: features are not finite.
        Cancelled: `cancel` was set.
    """
    gathered = GatheredFeatures(metrics)
    for features in _extract(images, extractor, total, progress, cancel):
        for metric in metrics if required else ():
            if getattr(features, NEEDS[metric]) is None:
                raise InputError(
                    f"{extractor.name} gives no {KINDS[NEEDS[metric]]}, so {metric} cannot be measured; leave it out."
                )
        gathered.add(features)
    return gathered


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
            if values is not None and len(checked_rows(values, f"{words} of {extractor.name}")) != len(pixels):
                raise InputError(
                    f"{extractor.name} gives {len(values)} rows of {words} for {len(pixels)} images; return one each."
                )
        yield features
        done += len(pixels)
        if progress is not None:
            progress(done, max(done, total or 0), "extracting features")
    if not done:
        raise InputError("There are no images to measure; give at least one.")
