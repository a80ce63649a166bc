"""Methods side by side: the same model, calibration, held-out data and ratios, one cell at a time."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from numprune.allocation.search import sensitivity, suggest
from numprune.allocation.threshold import allocate
from numprune.calibration import calibrate
from numprune.calibration.data import Data, describe
from numprune.calibration.statistics import CalibrationStats
from numprune.errors import CancelEvent, InputError, Progress, UnsupportedArchitecture, check_cancelled
from numprune.evaluation.divergence import divergence
from numprune.evaluation.images.features import Extractor
from numprune.evaluation.images.judge import panel_of
from numprune.evaluation.images.quality import image_quality
from numprune.evaluation.images.references import Reference
from numprune.evaluation.perplexity import perplexity
from numprune.evaluation.speed import measure_speed
from numprune.files import to_json, write_text
from numprune.models.model import Model
from numprune.plan.presets import METHODS, preset
from numprune.plan.recipe import CalibrationRecipe, Recipe
from numprune.pruning import prune
from numprune.scoring.run import score
from numprune.slicing.principal import slice_by_recipe
from numprune.slicing.stream import check_sliceable

DENSE = "dense"
_COLUMN = {"is": "inception_score"}
"""The column of a metric whose name cannot be one."""


@dataclass(frozen=True)
class Cell:
    """One method at one ratio with one calibration seed.

    Attributes:
        run: hash of everything else that decides the numbers; cells of different runs cannot be compared.
        model, method, ratio, seed: what was pruned, how; method "dense" with ratio 0 is the model itself.
        reached: share of the prunable parameters that went.
        parameters, bytes: of the pruned model, everything the method added included.
        seconds: scoring, choosing and pruning took, calibration left out; None for the dense model.
        tokens, nll, perplexity, kl: on held-out text: tokens predicted, nats per token, its exponential, and mean
            KL(dense, pruned) in nats per token; None for image models.
        images, recognised, fid: drawn images, the share its judge takes for the class that was asked for, and the
            Fréchet distance in the features of `extractor`; None for language models.
        decode: tokens per second decoded, the median; None when speed was not measured.
        device, threads: what it ran on.
        data: name of the held-out dataset or file, without its folder; None for image models.
        extractor: what the images were looked at with.
        sfid, inception_score, precision, recall: where the bench asked for them.
    """

    run: str
    model: str
    method: str
    ratio: float
    seed: int
    reached: float
    parameters: int
    bytes: int
    seconds: float | None
    tokens: int | None
    nll: float | None
    perplexity: float | None
    kl: float | None
    images: int | None
    recognised: float | None
    fid: float | None
    decode: float | None
    device: str
    threads: int
    data: str | None = None
    extractor: str | None = None
    sfid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None

    @property
    def place(self) -> tuple[str, float, int]:
        """Method, ratio and seed."""
        return self.method, self.ratio, self.seed


@dataclass(frozen=True)
class Bench:
    """What cells are measured on.

    Attributes:
        data: held-out text, as `numprune.perplexity` takes it; not used for image models.
        sequence_length: tokens per window of the text.
        images: to draw from an image model.
        drawing: cfg_scale, top_k and the like, as `LlamaGen.generate` takes them.
        extractor, reference, metrics: what to look at the images with, what to compare them with and which of
            `numprune.evaluation.images.features.METRICS` to tell; the model's own judge and its images without an extractor.
        repetitions: of the speed measurement; 0 leaves it out.
    """

    data: Data | None = None
    sequence_length: int = 2048
    images: int = 1000
    drawing: Mapping[str, Any] | None = None
    repetitions: int = 0
    extractor: Extractor | None = None
    reference: Reference | None = None
    metrics: Sequence[str] = ("fid",)


def compare_methods(
    model: Model,
    methods: Sequence[str],
    ratios: Sequence[float],
    bench: Bench | Sequence[Bench],
    *,
    recipe: Recipe | None = None,
    seeds: Sequence[int] = (0,),
    done: Collection[Cell] = (),
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> Iterator[Cell]:
    """Prune with every method at every ratio for every calibration seed, and measure; the dense model comes first.

    All methods of a seed share its calibration statistics. Memory never holds more than the dense model and one
    pruned one.

    Args:
        methods: names in `numprune.plan.presets.METHODS`.
        ratios: shares of the prunable parameters to remove, in (0, 1).
        bench: what to measure on; of several, every pruned model gives a cell for each.
        recipe: calibration, damping and rounding for all; its ratio and method are not used.
        seeds: of the calibration.
        done: cells that exist and are left out, of the same runs.

    Raises:
        UnsupportedArchitecture: a method cannot prune such a model.
        InputError: a name, ratio or seed is wrong, there is nothing to measure on, or `done` is of another run;
            what `prune` and the measurements raise, while cells are drawn.
        Cancelled: `cancel` was set.
    """
    recipe = recipe or Recipe()
    for name in methods:
        _check_method(model, name)
    plans = [recipe.replace(ratio=ratio) for ratio in ratios]
    if not (methods and plans and seeds) or any(not plan.ratio for plan in plans):
        raise InputError("Give at least one method, one ratio above 0 (the dense model is always there) and one seed.")
    benches = [bench] if isinstance(bench, Bench) else list(bench)
    for each in benches:
        if not model.adapter.reads_text:
            if model.judge is None and each.extractor is None:
                raise InputError(f"{model.name} comes without a judge of its images; measure it with `numprune eval`.")
        elif each.data is None:
            raise InputError("There is no held-out text to measure on; give data.")
    runs = {run_of(model, recipe, each): each for each in benches}
    if any(cell.run not in runs for cell in done):
        raise InputError(
            "The cells that exist were made with another model, calibration or held-out data; write to another file."
        )
    there = {(cell.run, *cell.place) for cell in done}
    return _cells(model, methods, plans, runs, seeds, there, progress, cancel)


def _cells(
    model: Model,
    methods: Sequence[str],
    plans: Sequence[Recipe],
    runs: Mapping[str, Bench],
    seeds: Sequence[int],
    there: Collection[tuple[str, str, float, int]],
    progress: Progress | None,
    cancel: CancelEvent | None,
) -> Iterator[Cell]:
    wanted = [(method, plan, seed) for seed in seeds for plan in plans for method in methods]
    missing = {
        (method, plan.ratio, seed): [run for run in runs if (run, method, plan.ratio, seed) not in there]
        for method, plan, seed in wanted
    }
    wanted = [(method, plan, seed) for method, plan, seed in wanted if missing[method, plan.ratio, seed]]
    stats, of_seed, shared = None, None, Shared()
    for run, bench in runs.items():
        if (run, DENSE, 0.0, seeds[0]) not in there:
            yield _measured(model, model, bench, run, DENSE, 0.0, seeds[0], 0.0, None, cancel)
    for index, (method, plan, seed) in enumerate(wanted):
        check_cancelled(cancel)
        if progress is not None:
            progress(index, len(wanted), f"{method} at {plan.ratio:g}, seed {seed}")
        if stats is None or of_seed != seed:
            source = replace(plan.calibration, seed=seed)
            stats, of_seed, shared = _calibrated(model, source, cancel), seed, Shared()
        pruned, reached, seconds = pruned_by(model, stats, method, plan, shared=shared, cancel=cancel)
        for run in missing[method, plan.ratio, seed]:
            yield _measured(model, pruned, runs[run], run, method, plan.ratio, seed, reached, seconds, cancel)
        del pruned
    if progress is not None:
        progress(len(wanted), len(wanted), "comparing methods")


def methods_for(model: Model) -> list[str]:
    """The methods that can prune such a model."""
    found = []
    for name in METHODS:
        with suppress(UnsupportedArchitecture):
            _check_method(model, name)
            found.append(name)
    return found


def _check_method(model: Model, name: str) -> None:
    if preset(name).settings.get("removal") == "slicegpt":
        check_sliceable(model.adapter, model.config, model.name)


class Shared:
    """Scores, curves and ratios of one model and calibration, which several methods and ratios have in common.

    Each is computed once; `saved` sums up the seconds that was worth since it was last set to 0.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[Any, float]] = {}
        self.saved = 0.0

    def get(self, what: str, of: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, from an earlier call with the same names when there was one."""
        if (what, of) in self._found:
            value, seconds = self._found[what, of]
            self.saved += seconds
            return value
        began = time.monotonic()
        value = make()
        self._found[what, of] = value, time.monotonic() - began
        return value


def pruned_by(
    model: Model,
    stats: CalibrationStats,
    method: str,
    recipe: Recipe,
    *,
    shared: Shared | None = None,
    cancel: CancelEvent | None = None,
) -> tuple[Model, float, float]:
    """The model pruned by a named method with the ratio, locks and rounding of a recipe, the ratio reached, and the
    seconds that scoring, choosing and pruning take, whether they were shared or not."""
    began, shared = time.monotonic(), shared or Shared()
    shared.saved = 0.0
    chosen = preset(method)
    recipe = chosen.applied(recipe)
    if recipe.removal == "slicegpt":
        sliced = slice_by_recipe(model, stats, recipe, cancel=cancel)
        return sliced, sliced.report.ratio_reached, time.monotonic() - began
    scores = shared.get("scores", recipe.scorer, lambda: score(model, stats, scorer=recipe.scorer, cancel=cancel))
    if chosen.suggests:
        # Neither depends on healing, nor the curves on the ratio.
        plain = recipe.replace(healing=0)
        curves = shared.get(
            "curves",
            plain.replace(ratio=0.0).to_json(),
            lambda: sensitivity(model, stats, scores, plain, cancel=cancel),
        )
        suggested = shared.get(
            "ratios", plain.to_json(), lambda: suggest(model, stats, scores, plain, curves=curves, cancel=cancel)
        )
        recipe = suggested.replace(healing=recipe.healing)
    plan = allocate(scores, recipe)
    pruned = prune(model, plan, stats, cancel=cancel)
    return pruned, plan.ratio_reached, time.monotonic() - began + shared.saved


def _calibrated(model: Model, source: CalibrationRecipe, cancel: CancelEvent | None) -> CalibrationStats:
    if source.data is None:
        raise InputError("The recipe was calibrated on text it does not name; name a file or dataset.")
    length = min(source.sequence_length, model.maximum_length or source.sequence_length)
    return calibrate(
        model, source.data, samples=source.samples, sequence_length=length, seed=source.seed, cancel=cancel
    )


def _measured(
    dense: Model,
    model: Model,
    bench: Bench,
    run: str,
    method: str,
    ratio: float,
    seed: int,
    reached: float,
    seconds: float | None,
    cancel: CancelEvent | None,
) -> Cell:
    found: dict[str, Any] = dict.fromkeys(
        ("tokens", "nll", "perplexity", "kl", "images", "recognised", "fid", "decode")
    )
    if not model.adapter.reads_text:
        extractor, reference = bench.extractor, bench.reference
        if extractor is None:
            extractor = panel_of(model)
            reference = extractor.reference
        quality = image_quality(
            model, bench.images, extractor, reference, bench.metrics, cancel=cancel, **(bench.drawing or {})
        )
        found.update({_COLUMN.get(metric, metric): value for metric, value in quality.metrics.values.items()})
        found.update(images=quality.n, recognised=quality.recognised, extractor=quality.metrics.extractor)
    else:
        loss = perplexity(model, bench.data, sequence_length=bench.sequence_length, cancel=cancel)
        found.update(
            tokens=loss.tokens, nll=loss.nll, perplexity=float(loss), kl=0.0, data=Path(describe(bench.data)).name
        )
        if model is not dense:
            found["kl"] = divergence(
                dense, model, bench.data, sequence_length=bench.sequence_length, cancel=cancel
            ).mean_kl
    if bench.repetitions:
        found["decode"] = measure_speed(model, repetitions=bench.repetitions, cancel=cancel).decode[0]
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
        device=str(model.device),
        threads=torch.get_num_threads(),
        **found,
    )


def run_of(model: Model, recipe: Recipe, bench: Bench) -> str:
    """Hash of what decides a cell's numbers beside method, ratio and seed, see `Cell.run`."""
    settings = {
        "fingerprint": model.fingerprint(),
        "calibration": [
            _named(recipe.calibration.data),
            recipe.calibration.samples,
            recipe.calibration.sequence_length,
        ],
        "recipe": [recipe.damping, recipe.round_heads, recipe.round_channels, recipe.allow_empty],
        **({"uniform": True} if recipe.uniform else {}),
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
    """The name of a dataset, or a hash of what a file or a value holds, wherever it lies."""
    if isinstance(data, str | Path) and Path(data).is_file():
        return hashlib.sha256(Path(data).read_bytes()).hexdigest()
    if isinstance(data, torch.Tensor):
        return hashlib.sha256(str(data.tolist()).encode()).hexdigest()
    return hashlib.sha256(repr(data).encode()).hexdigest()


def read_cells(path: str | Path) -> list[Cell]:
    """Cells that `write_cells` wrote; none when the file does not exist. Columns that came later may be missing.

    Raises:
        InputError: the file is something else.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        return [
            Cell(**{item.name: _parsed(str(item.type), row[item.name]) for item in fields(Cell) if _given(item, row)})
            for row in rows
        ]
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} was not written by `numprune sweep --methods`; choose another file.") from error


def _given(item: Field[Any], row: Mapping[str, str]) -> bool:
    return item.name in row or item.default is MISSING


def _parsed(kind: str, text: str) -> Any:
    if not text and "None" in kind:
        return None
    return {"int": int, "float": float, "str": str}[kind.split(" ")[0]](text)


def write_cells(path: str | Path, cells: Sequence[Cell]) -> None:
    """Write cells as CSV, beside the file first, so that it is whole at any time."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [item.name for item in fields(Cell)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in asdict(cell).items()} for cell in cells)
    write_text(path, text.getvalue())


def summary(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row per method and ratio: seeds, parameters, and mean, lowest and highest over the seeds.

    `measure` is the excess loss ln PPL pruned - ln PPL dense for language models, `fid` for image models.
    """
    dense = next((cell for cell in cells if cell.method == DENSE), None)
    rows = []
    places = dict.fromkeys((cell.method, cell.ratio) for cell in cells if cell.method != DENSE)
    for method, ratio in places:
        group = [cell for cell in cells if (cell.method, cell.ratio) == (method, ratio)]
        if dense is not None and dense.nll is not None:
            values = [cell.nll - dense.nll for cell in group if cell.nll is not None]
        else:
            values = [cell.fid for cell in group if cell.fid is not None]
        rows.append(
            {
                "method": method,
                "ratio": ratio,
                "seeds": len(group),
                "parameters": group[0].parameters,
                "measure": sum(values) / len(values) if values else math.nan,
                "lowest": min(values, default=math.nan),
                "highest": max(values, default=math.nan),
                "kl": _mean([cell.kl for cell in group]),
                "recognised": _mean([cell.recognised for cell in group]),
                "seconds": _mean([cell.seconds for cell in group]),
                "decode": _mean([cell.decode for cell in group]),
            }
        )
    return pd.DataFrame(rows)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan
