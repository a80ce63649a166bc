"""Images of several models side by side, one column each, with what a judge sees in them and their figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from numprune.errors import CancelEvent, InputError, Progress
from numprune.ui import engine, html
from numprune.ui.pictures import Drawn, Exhibition

if TYPE_CHECKING:
    from numprune.evaluation.images.quality import ImageQuality
    from numprune.llamagen import LlamaGen
    from numprune.models import Model


MOST_IMAGES = 64


def exhibition(
    models: Mapping[str, LlamaGen],
    classes: list[int],
    count: int,
    seed: int,
    settings: Mapping[str, Any],
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> Iterator[Exhibition]:
    """All images so far, model after model.

    Raises:
        InputError: there is no class or there are too many images, or the models cannot paint.
    """
    wanted = [each for each in classes for _ in range(count)]
    if not wanted:
        raise InputError("No class is chosen; choose at least one.")
    if len(wanted) > MOST_IMAGES:
        raise InputError(
            f"{len(classes)} classes of {count} images are {len(wanted)}; draw at most {MOST_IMAGES} at once."
        )
    seeds = [seed + index for index in range(len(wanted))]
    dense = next(iter(models.values()))
    panel = engine.panel_of(dense)
    drawn: dict[str, Drawn] = {}
    for name, model in models.items():
        # The first run in a process also pays for what is set up once.
        model.generate(wanted[:1], seed=seed, cancel=cancel, **settings)
        started = engine.now(model.device)
        codes = model.generate(wanted, seed=seed, progress=progress, cancel=cancel, **settings)
        images = model.decode(codes)
        seconds = engine.now(model.device) - started
        drawn[name] = Drawn.of(images, seconds, None if panel is None else panel.verdicts(images))
        yield Exhibition(dense.class_names, wanted, seeds, dict(drawn))


def quality_frame(measured: Mapping[str, ImageQuality], models: Mapping[str, Model]) -> pd.DataFrame:
    """One row a model, everything that was measured of its images."""
    rows = []
    for name, each in measured.items():
        values = each.to_dict()
        rows.append({"model": name, "parameters": models[name].parameters, **values.pop("values"), **values})
    return pd.DataFrame(rows)


def quality_rows(each: ImageQuality, parameters: int, fastest: float) -> list[tuple[str, str]]:
    """Name and text of every figure of one model's images; `fastest` is the dense model's speed."""
    values = each.metrics.values
    median, low, high = each.images_per_second
    return [
        ("Parameters", f"{parameters:,}"),
        ("Recognised as their class", f"{each.recognised:.1%} ± {each.recognised_error:.1%}"),
        ("Fréchet distance to real images", f"{values['fid']:.3f}"),
        ("Spatial Fréchet distance", f"{values['sfid']:.3f}"),
        ("Class score (as the Inception score)", f"{values['is']:.2f}"),
        ("Precision", f"{values['precision']:.1%}"),
        ("Recall", f"{values['recall']:.1%}"),
        ("Images/s", f"{median:.1f} ({low:.1f} to {high:.1f}) · {median / fastest:.2f}x"),
        ("Seconds an image", f"{1 / median:.4f}"),
    ]


def quality_line(each: ImageQuality, fastest: float, *, dense: bool) -> str:
    """A model's figures in one line; `fastest` is the dense model's speed."""
    parts = [f"{each.recognised:.1%} recognised", f"Fréchet {each.metrics.values['fid']:.2f}"]
    parts.append(f"{each.images_per_second[0]:.1f} images/s")
    if not dense:
        parts.append(f"<b>{each.images_per_second[0] / fastest:.2f}×</b>")
    return f"<span class='np-headline'>{' · '.join(parts)}</span>"


def quality_columns(names: Sequence[str], measured: Mapping[str, ImageQuality], parameters: Mapping[str, int]) -> str:
    """All figures under the columns of the models, and how they were measured."""
    found = [name for name in names if name in measured]
    if not found:
        return ""
    first = measured[found[0]]
    cells = ""
    for name in names:
        rows = quality_rows(measured[name], parameters[name], first.images_per_second[0]) if name in measured else []
        pairs = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in rows)
        cells += f"<dl aria-label='Figures of {escape(name, quote=True)}'>{pairs}</dl>"
    return f"<div class='np-figures' style='--n:{len(names)}'>{cells}</div>" + quality_print(first)


def quality_table(measured: Mapping[str, ImageQuality], parameters: Mapping[str, int]) -> str:
    """The same with the models' names above, for a page of its own."""
    fastest = next(iter(measured.values())).images_per_second[0]
    found = [dict(quality_rows(each, parameters[name], fastest)) for name, each in measured.items()]
    rows = [(label, *(each[label] for each in found)) for label in found[0]]
    return html.table(["", *measured], rows) + quality_print(next(iter(measured.values())))


def quality_print(first: ImageQuality) -> str:
    """How the figures of images were measured."""
    small_print = [
        f"{first.n:,} images of every model, all classes alike, judged by {first.metrics.extractor}, a classifier"
        " trained on real images: not Inception, so the values cannot be set beside published ones. ± is one standard"
        " error. Fréchet distances shrink with the number of images; compare at the same one.",
        f"Speed: median (lowest to highest) of {len(first.batch_seconds)} batches of {first.batch}, on {first.device}"
        f" in {first.dtype}; 1.00x is the dense model.",
    ]
    return html.notes(small_print)
