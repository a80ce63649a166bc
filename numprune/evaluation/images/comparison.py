"""Generated images against a reference, by ADM's metrics (Dhariwal and Nichol 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from numprune.errors import CancelEvent, InputError, Progress
from numprune.evaluation.images.features import METRICS, Extractor, Images, check_metrics, gather
from numprune.evaluation.images.metrics import frechet_distance, inception_score, precision_recall
from numprune.evaluation.images.references import Reference


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
    check_metrics(metrics)
    for metric in metrics:
        if metric != "is" and reference is None:
            raise InputError(f"{metric} compares with real images; give a reference or leave it out.")
        if reference is not None and not reference.covers(metric):
            raise InputError(f"The reference has nothing to measure {metric} with; make it for that metric too.")
    if reference is not None and reference.extractor != extractor.name:
        raise InputError(
            f"The reference belongs to {reference.extractor}, not to {extractor.name}; use one extractor for both."
        )
    gathered = gather(images, extractor, metrics, required=True, total=total, progress=progress, cancel=cancel)
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
