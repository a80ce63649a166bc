"""What cells are measured on, and one cell measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from numprune.calibration.data import Data, describe, text_start
from numprune.calibration.sources import parse_sources
from numprune.errors import CancelEvent, InputError
from numprune.evaluation.cells import Cell
from numprune.evaluation.divergence import divergence
from numprune.evaluation.images.features import Extractor
from numprune.evaluation.images.judge import panel_of
from numprune.evaluation.images.quality import image_quality
from numprune.evaluation.images.references import Reference
from numprune.evaluation.perplexity import perplexity
from numprune.evaluation.speed import measure_speed
from numprune.files import to_json
from numprune.models.model import Model
from numprune.plan.recipe import Recipe

_COLUMN = {"is": "inception_score"}
"""The column of a metric whose name cannot be one."""


@dataclass(frozen=True)
class Bench:
    """What cells are measured on.

    Attributes:
        data: held-out text, as `numprune.perplexity` takes it; not used for image models.
        sequence_length: tokens per window of the text.
        max_tokens: predicted of the text at most, as in `numprune.perplexity`; None for all.
        bos: whether every window begins as the tokenizer begins a text, as in `numprune.perplexity`.
        compare: whether the KL to the dense model is measured as well, which takes longer than the loss.
        images: to draw from an image model.
        drawing: cfg_scale, top_k and the like, as `LlamaGen.generate` takes them.
        extractor, reference, metrics: as in `numprune.evaluation.images.comparison.image_metrics`; without an
            extractor, the model's own judge and its reference.
        repetitions: of the speed measurement; 0 leaves it out.
    """

    data: Data | None = None
    sequence_length: int = 2048
    max_tokens: int | None = None
    bos: bool = True
    compare: bool = True
    images: int = 1000
    drawing: Mapping[str, Any] | None = None
    repetitions: int = 0
    extractor: Extractor | None = None
    reference: Reference | None = None
    metrics: Sequence[str] = ("fid",)


def check_measurable(model: Model, bench: Bench) -> None:
    """Raise InputError when a bench has nothing to measure such a model on."""
    if not model.adapter.reads_text:
        if model.judge is None and bench.extractor is None:
            raise InputError(f"{model.name} comes without a judge of its images; measure it with `numprune eval`.")
    elif bench.data is None:
        raise InputError("There is no held-out text to measure on; give data.")


def measured_cell(
    dense: Model,
    model: Model,
    bench: Bench,
    run: str,
    configuration: tuple[str, float, int],
    *,
    reached: float = 0.0,
    seconds: float | None = None,
    peak_bytes: int | None = None,
    cancel: CancelEvent | None = None,
) -> Cell:
    """Measure one model on a bench.

    Args:
        dense: the model that `model` was pruned from, or `model` itself.
        run: from `run_of`.
        configuration: method, ratio and seed, as `Cell.configuration`.
        reached, seconds, peak_bytes: as in `Cell`.
    """
    measures: dict[str, Any] = dict.fromkeys(
        ("tokens", "nll", "perplexity", "kl", "images", "recognised", "fid", "decode")
    )
    if model.adapter.reads_text:
        measures.update(_text_measures(dense, model, bench, cancel))
    else:
        measures.update(_image_measures(model, bench, cancel))
    if bench.repetitions:
        measures["decode"] = measure_speed(model, repetitions=bench.repetitions, cancel=cancel).decode[0]
    method, ratio, seed = configuration
    return Cell(
        run=run,
        model=dense.name,
        method=method,
        ratio=ratio,
        seed=seed,
        reached=reached,
        parameters=model.parameters,
        bytes=model.bytes,
        seconds=seconds,
        peak_bytes=peak_bytes,
        device=str(model.device),
        threads=torch.get_num_threads(),
        **measures,
    )


def _text_measures(dense: Model, model: Model, bench: Bench, cancel: CancelEvent | None) -> dict[str, Any]:
    length, most, bos = bench.sequence_length, bench.max_tokens, bench.bos
    loss = perplexity(model, bench.data, sequence_length=length, max_tokens=most, bos=bos, cancel=cancel)
    kl = None
    if bench.compare:
        kl = 0.0
        if model is not dense:
            compared = divergence(dense, model, bench.data, sequence_length=length, limit=most, bos=bos, cancel=cancel)
            kl = compared.mean_kl
    return {
        "tokens": loss.tokens,
        "nll": loss.nll,
        "perplexity": float(loss),
        "kl": kl,
        "data": Path(describe(bench.data)).name,
    }


def _image_measures(model: Model, bench: Bench, cancel: CancelEvent | None) -> dict[str, Any]:
    extractor, reference = bench.extractor, bench.reference
    if extractor is None:
        extractor = panel_of(model)
        reference = extractor.reference
    quality = image_quality(
        model, bench.images, extractor, reference, bench.metrics, cancel=cancel, **(bench.drawing or {})
    )
    values = {_COLUMN.get(metric, metric): value for metric, value in quality.metrics.values.items()}
    return {
        **values,
        "images": quality.n,
        "recognised": quality.recognised,
        "extractor": quality.metrics.extractor,
    }


def run_of(model: Model, recipe: Recipe, bench: Bench) -> str:
    """Hash of what decides a cell's numbers beside method, ratio and seed, see `Cell.run`."""
    start = text_start(model.tokenizer) if bench.bos or recipe.calibration.bos else ()
    settings = {
        "fingerprint": model.fingerprint(),
        "calibration": [
            _named(recipe.calibration.data),
            recipe.calibration.samples,
            recipe.calibration.sequence_length,
        ],
        "recipe": [recipe.damping, recipe.round_heads, recipe.round_channels, recipe.allow_empty],
        **({"scarcity": recipe.scarcity} if recipe.scarcity != Recipe.scarcity else {}),
        **({"uniform": True} if recipe.uniform else {}),
        **({"max_tokens": bench.max_tokens} if bench.max_tokens else {}),
        **({"start": [list(start), bench.bos, recipe.calibration.bos]} if start else {}),
        "data": _named(bench.data),
        "bench": [bench.sequence_length, bench.images, sorted((bench.drawing or {}).items()), bench.repetitions],
    }
    if bench.extractor is not None or tuple(bench.metrics) != ("fid",):
        moments = bench.reference and bench.reference.pool
        settings["images"] = [
            bench.extractor and bench.extractor.name,
            *bench.metrics,
            moments and hashlib.sha256(str(moments.mean.tolist()).encode()).hexdigest(),
        ]
    return hashlib.sha256(to_json(settings).encode()).hexdigest()[:12]


def _named(data: Data | None) -> str:
    """The name of a dataset, or a hash of what a file or a value holds, wherever it lies; of several sources, all."""
    if isinstance(data, str | Path):
        sources = parse_sources(data)
        if len(sources) > 1:
            return ",".join(f"{_named(name)}={weight:g}" for name, weight in sources.items())
        if Path(data).is_file():
            return hashlib.sha256(Path(data).read_bytes()).hexdigest()
    if isinstance(data, torch.Tensor):
        return hashlib.sha256(str(data.tolist()).encode()).hexdigest()
    return hashlib.sha256(repr(data).encode()).hexdigest()
