"""The quality of an image model's own samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from numprune.errors import CancelEvent, InputError, Progress
from numprune.evaluation.images.comparison import ImageMetrics, image_metrics
from numprune.evaluation.images.features import METRICS, Extractor
from numprune.evaluation.images.judge import Panel
from numprune.evaluation.images.references import Reference
from numprune.evaluation.speed import now, spread
from numprune.llamagen import LlamaGen
from numprune.models.placement import dtype_name


@dataclass(frozen=True)
class ImageQuality:
    """Quality of an image model's samples and the time they took.

    Attributes:
        metrics: values and the extractor they were measured with.
        recognised: share of the images a judge takes for the class they were drawn for; None without a judge.
        batch_seconds: for drawing and painting each batch, in order; the first, a warm-up, is left out where there
            are more, and a last one that is not full too. Measuring the images is not in it.
        batch: images drawn at once.
        settings: guidance, temperature and the like, as `LlamaGen.generate` takes them.
        device, dtype: where and in what.
    """

    metrics: ImageMetrics
    recognised: float | None
    batch_seconds: tuple[float, ...]
    batch: int
    settings: dict[str, Any]
    device: str
    dtype: str

    @property
    def n(self) -> int:
        return self.metrics.n

    @property
    def recognised_error(self) -> float | None:
        """Standard error of `recognised` (binomial); None without a judge."""
        return None if self.recognised is None else math.sqrt(self.recognised * (1 - self.recognised) / self.n)

    @property
    def images_per_second(self) -> tuple[float, float, float]:
        """Median, lowest and highest over the batches."""
        return spread([self.batch / seconds for seconds in self.batch_seconds])

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.metrics.to_dict(),
            "recognised": self.recognised,
            "recognised_error": self.recognised_error,
            "batch_seconds": list(self.batch_seconds),
            "images_per_second": self.images_per_second,
            "batch": self.batch,
            "settings": self.settings,
            "device": self.device,
            "dtype": self.dtype,
        }


def evenly(classes: int, n: int) -> torch.Tensor:
    """Class ids (n,) that take every class as often as the others, or as many different ones as there are images."""
    return torch.arange(n) % classes if n >= classes else torch.arange(n) * classes // n


def image_quality(
    model: LlamaGen,
    n: int,
    extractor: Extractor,
    reference: Reference | None,
    metrics: Sequence[str] = METRICS,
    *,
    batch: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
    **settings: Any,
) -> ImageQuality:
    """Draw n images, all classes alike, and measure them; image i draws from seed + i.

    Args:
        extractor, reference, metrics: as in `image_metrics`. A `Panel` as the extractor also tells which share it
            recognises.
        settings: cfg_scale, temperature, top_k and top_p, as `LlamaGen.generate` takes them.

    Raises:
        InputError: n or a setting is out of range, or the metrics do not fit the extractor and the reference.
        NumericalError: logits or features are not finite.
        Cancelled: `cancel` was set.
    """
    if n < 2:
        raise InputError(f"{n} images were asked for; measure at least 2, better 1,000 and more.")
    if batch < 1:
        raise InputError(f"batch is {batch}; give at least 1.")
    if model.vq is None:
        raise InputError(
            f"{model.name} came without an image tokenizer, so its images cannot be seen; give its VQ file."
        )
    batch = min(batch, n)
    classes = evenly(model.classes, n)
    seconds: list[float] = []
    right = 0

    def drawn() -> Iterator[torch.Tensor]:
        nonlocal right
        for begin in range(0, n, batch):
            wanted = classes[begin : begin + batch]
            report = None if progress is None else partial(_moved, progress, begin * model.grid**2, n * model.grid**2)
            started = now(model.device)
            images = model.decode(
                model.generate(wanted, seed=seed + begin, batch_size=batch, progress=report, cancel=cancel, **settings)
            )
            seconds.append(now(model.device) - started)
            if isinstance(extractor, Panel):
                right += round(extractor.verdicts(images).recognised(wanted) * len(wanted))
            yield images

    measured = image_metrics(drawn(), extractor, reference, metrics, total=n, cancel=cancel)
    full = seconds[: n // batch]
    return ImageQuality(
        metrics=measured,
        recognised=right / n if isinstance(extractor, Panel) else None,
        batch_seconds=tuple(full[1:] or full),
        batch=batch,
        settings={"seed": seed, **settings},
        device=str(model.device),
        dtype=dtype_name(model.dtype),
    )


def _moved(progress: Progress, offset: int, whole: int, done: int, total: int, what: str) -> None:
    """Report a part of the work as a part of the whole."""
    progress(offset + done, whole, what)
