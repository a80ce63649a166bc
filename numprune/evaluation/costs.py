"""What scoring, calibrating, pruning and running a pruned model cost.

Each function measures one claim on random data of a stated shape and returns a `Benchmark`. Costs are ratios measured
within one run, so that they hold on a busy or an unknown machine too: what is compared is measured alternately, and a
ratio is taken repetition by repetition.
"""

from __future__ import annotations

import multiprocessing
import signal
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from numprune.allocation.threshold import allocate
from numprune.calibration import CalibrationStats, calibrate
from numprune.errors import Progress
from numprune.evaluation.benchmark import Benchmark, Figure, quotients, timed, told
from numprune.evaluation.memory import growth, measurable
from numprune.evaluation.random_models import Shape, random_llama, random_statistics, random_tokens
from numprune.evaluation.speed import measure_in_turn
from numprune.generation.cache import reserved_cache
from numprune.linalg import symmetric_product, to_float64
from numprune.llamagen import LlamaGen
from numprune.llamagen.model import build as build_llamagen
from numprune.models.model import Model
from numprune.models.placement import dtype_name, resolve_device, resolve_dtype
from numprune.plan.plan import PruningPlan
from numprune.plan.recipe import Recipe
from numprune.pruning import prune
from numprune.scoring import score
from numprune.scoring.elimination import eliminate
from numprune.scoring.newton import numerical_score

PAPER_STEPS = 50
"""T of Algorithm 1."""


def usual_loop_steps(channels: int, device: str) -> int:
    """Steps of the loop worth timing: all of the paper's, except where a CPU would need many minutes."""
    return 2 if channels > 4096 and resolve_device(device).type == "cpu" else PAPER_STEPS


def _random_layer(channels: int, out_features: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (out, in) and the Gram matrix (in, in) of inputs scaled to Frobenius norm 1."""
    options = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    weight = torch.randn(out_features, channels, **options) / channels**0.5
    # As many tokens as make a quick product; the identity keeps the rest of the space well-conditioned.
    tokens = min(channels, 512)
    gram = to_float64(symmetric_product(torch.randn(tokens, channels, **options)))
    gram.diagonal().add_(tokens)
    return weight, gram / gram.trace()


def bench_score(
    channels: int,
    *,
    out_features: int = 4096,
    device: str = "auto",
    repetitions: int = 3,
    loop_steps: int = PAPER_STEPS,
    progress: Progress | None = None,
) -> Benchmark:
    """The closed form of the numerical score against the paper's loop and against a bare factorisation.

    The loop runs once. When `loop_steps` is less than the paper's 50, the time of 50 steps is extrapolated from
    the time per step, and named so.

    Args:
        channels: input channels of the random layer, the size of the system.
    """
    target = resolve_device(device)
    weight, gram = _random_layer(channels, out_features, target)
    system = gram * to_float64(symmetric_product(weight))

    closed = numerical_score(weight, gram, ratio=0.5)
    torch.linalg.cholesky(system)  # both calls are a warm-up

    factorising, closing = [], []
    for repetition in range(repetitions):
        factorising.append(timed(lambda: torch.linalg.cholesky(system), target))
        closing.append(timed(lambda: numerical_score(weight, gram, ratio=0.5), target))
        told(progress, repetition + 1, repetitions + 1, f"scoring {channels} channels")
    looped: list[torch.Tensor] = []
    seconds = timed(
        lambda: looped.append(numerical_score(weight, gram, ratio=0.5, solver="newton", steps=loop_steps)), target
    )
    told(progress, repetitions + 1, repetitions + 1, f"scoring {channels} channels")

    closed_seconds = statistics.median(closing)
    # Before its first step the loop builds and damps the system, which is what the closed form does.
    per_step = max(seconds - closed_seconds, 0.0) / loop_steps
    whole = loop_steps >= PAPER_STEPS
    label = f"loop, {PAPER_STEPS} steps" if whole else f"loop, {PAPER_STEPS} steps, extrapolated from {loop_steps}"
    loop = seconds if whole else closed_seconds + PAPER_STEPS * per_step
    figures = [
        Figure.of("closed form", "s", closing),
        Figure.of("bare Cholesky", "s", factorising),
        Figure.of("closed form / Cholesky", "x", quotients(closing, factorising), "< 3"),
        Figure.of(label, "s", [loop]),
        Figure.of(f"{label} / closed form", "x", [loop / value for value in closing]),
        Figure.of("max |z closed - z loop|", "", [float((closed - looped[0]).abs().max())], "<= 1e-6"),
    ]
    if not whole:
        figures.insert(3, Figure.of(f"loop, {loop_steps} steps, measured", "s", [seconds]))
    settings = {"channels": channels, "out_features": out_features, "loop_steps": loop_steps}
    return Benchmark(f"score {channels}", str(target), "float32 weight, float64 solve", settings, figures)


def bench_eliminate(
    channels: int,
    *,
    out_features: int | None = None,
    device: str = "auto",
    repetitions: int = 3,
    progress: Progress | None = None,
) -> Benchmark:
    """Greedy elimination, one unit a step, over a bare factorisation of the same size.

    Args:
        channels: input channels of the random layer, each a unit.
        out_features: of the layer; None for as many as it has channels, 4096 at most, which is what output
            projections of attentions and of MLPs have.
    """
    target = resolve_device(device)
    out_features = out_features or min(channels, 4096)
    weight, gram = _random_layer(channels, out_features, target)
    torch.linalg.cholesky(gram)  # a warm-up
    factorising, eliminating = [], []
    for repetition in range(repetitions):
        factorising.append(timed(lambda: torch.linalg.cholesky(gram), target))
        eliminating.append(timed(lambda: eliminate(weight, gram), target))
        told(progress, repetition + 1, repetitions, f"eliminating {channels} channels")
    figures = [
        Figure.of("eliminate", "s", eliminating),
        Figure.of("bare Cholesky", "s", factorising),
        Figure.of("eliminate / Cholesky", "x", quotients(eliminating, factorising), "<= 12"),
    ]
    settings = {"channels": channels, "out_features": out_features}
    return Benchmark(f"eliminate {channels}", str(target), "float32 weight, float64", settings, figures)


def bench_calibrate(
    shape: Shape,
    *,
    samples: int = 8,
    sequence_length: int = 512,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str = "auto",
    repetitions: int = 3,
    progress: Progress | None = None,
) -> Benchmark:
    """Calibration over a plain forward pass of the backbone (no logits) on the same batches."""
    model = random_llama(shape, device=device, dtype=dtype)
    tokens = random_tokens(shape, samples, sequence_length)

    @torch.no_grad()
    def forward() -> None:
        for batch in tokens.split(batch_size):
            model.module.base_model(input_ids=batch.to(model.device), use_cache=False)

    def calibrated() -> None:
        calibrate(model, tokens, samples=samples, sequence_length=sequence_length, batch_size=batch_size)

    plain, whole = [], []
    for repetition in range(repetitions + 1):
        times = timed(forward, model.device), timed(calibrated, model.device)
        if repetition:  # the first is a warm-up
            plain.append(times[0])
            whole.append(times[1])
        told(progress, repetition + 1, repetitions + 1, "calibrating")
    figures = [
        Figure.of("calibrate", "s", whole),
        Figure.of("forward", "s", plain),
        Figure.of("calibrate / forward", "x", quotients(whole, plain), "<= 2.0"),
    ]
    settings = {**asdict(shape), "samples": samples, "sequence_length": sequence_length, "batch_size": batch_size}
    return Benchmark("calibrate", str(model.device), dtype_name(model.dtype), settings, figures)


def bench_prune(
    shape: Shape,
    *,
    ratio: float = 0.5,
    device: str = "auto",
    dtype: str = "auto",
    repetitions: int = 3,
    progress: Progress | None = None,
) -> Benchmark:
    """Peak memory while a model is pruned and compensated, over the memory of its weights.

    Counted are the weights, the pruned copy and everything temporary; the Gram matrices of the calibration are stated
    apart. On a GPU it is torch's own count; on a CPU the resident memory of a fresh process, known under Linux alone.
    """
    target = resolve_device(device)
    if not measurable(target):
        note = f"The peak memory on {target} is not known here; measure on CUDA, or on a CPU under Linux."
        return Benchmark("prune", str(target), dtype, {**asdict(shape), "ratio": ratio}, [], [note])
    runs = []
    for repetition in range(repetitions):
        runs.append((_prune_memory if target.type == "cuda" else _in_fresh_process)(shape, ratio, device, dtype))
        told(progress, repetition + 1, repetitions, "pruning")
    last = runs[-1]
    grown = [run.growth for run in runs]
    figures = [
        Figure.of("weights + growth / weights", "x", [(last.weights + added) / last.weights for added in grown]),
        Figure.of("growth", "bytes", grown),
        Figure.of("weights", "bytes", [last.weights]),
        Figure.of("pruned weights", "bytes", [last.pruned]),
        Figure.of("Gram matrices", "bytes", [last.grams]),
        Figure.of("Gram matrices / weights", "x", [last.grams / last.weights]),
    ]
    return Benchmark("prune", last.device, last.dtype, {**asdict(shape), "ratio": ratio}, figures)


def bench_speed(
    shape: Shape,
    *,
    ratio: float = 0.5,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    device: str = "auto",
    dtype: str = "auto",
    repetitions: int = 3,
    progress: Progress | None = None,
) -> Benchmark:
    """Speed and memory of a pruned model over the dense one's, beside what the parameters promise.

    Times are of prefill, of decoding and to the first token; for the memory see `Speed.peak_bytes`.
    """
    dense = random_llama(shape, device=device, dtype=dtype)
    stats = random_statistics(dense, shape)
    pruned = prune(dense, _plan(dense, stats, ratio), stats)
    models = {"dense": dense, "pruned": pruned}
    records = measure_in_turn(
        list(models.values()),
        [1] * prompt_tokens,
        new_tokens=new_tokens,
        batch=1,
        repetitions=repetitions,
        progress=progress,
    )
    figures = []
    for name, record in zip(models, records, strict=True):
        figures += [
            Figure.of(f"{name} prefill", "tokens/s", [prompt_tokens / run.first for run in record.runs]),
            Figure.of(f"{name} decode", "tokens/s", [new_tokens / run.rest for run in record.runs]),
            Figure.of(f"{name} first token", "s", [run.first for run in record.runs]),
        ]
        if record.peaks:
            figures.append(Figure.of(f"{name} peak memory", "bytes", record.peaks))
    # A token reads one row of the input embedding and every other weight.
    promised = _read_per_token(dense) / _read_per_token(pruned)
    first, last = records
    for phase, gains in (
        ("prefill", quotients([run.first for run in first.runs], [run.first for run in last.runs])),
        ("decode", quotients([run.rest for run in first.runs], [run.rest for run in last.runs])),
    ):
        figures.append(Figure.of(f"{phase}, pruned / dense", "x", gains, f"promised {promised:.2f}"))
    if first.peaks:
        figures.append(Figure.of("peak memory, pruned / dense", "x", quotients(last.peaks, first.peaks)))
    settings = {**asdict(shape), "ratio": ratio, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    settings |= {"parameters_dense": dense.parameters, "parameters_pruned": pruned.parameters}
    return Benchmark("speed", str(dense.device), dtype_name(dense.dtype), settings, figures)


def bench_images(
    shape: Shape,
    *,
    ratio: float = 0.5,
    grid: int = 8,
    batch: int = 16,
    device: str = "auto",
    dtype: str = "auto",
    repetitions: int = 3,
    progress: Progress | None = None,
) -> Benchmark:
    """Drawing images with guidance: over the bare forwards, many at once over one, and pruned over dense.

    The bare forwards are those of the same decoder, for the same rows and codes, with the same cache, and nothing
    between them. Codes are drawn and not painted: pruning does not touch the image tokenizer.
    """
    target = resolve_device(device)
    sizes = {"hidden": shape.hidden, "layers": shape.layers, "heads": shape.heads, "channels": shape.channels}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = build_llamagen(classes=10, vocab=shape.vocabulary, grid=grid, **sizes)
    dense.module.to(target, resolve_dtype(dtype, dense.config, target)).requires_grad_(False)
    stats = calibrate(dense, "self", samples=4, sequence_length=1 + grid**2)
    pruned = prune(dense, _plan(dense, stats, ratio), stats)
    classes = torch.arange(batch) % dense.classes
    works: dict[str, Callable[[], Any]] = {
        "bare forwards": partial(_bare_forwards, dense, 2 * batch),
        "generate": partial(dense.generate, classes),
        "generate, pruned": partial(pruned.generate, classes),
        "generate, one image": partial(dense.generate, classes[:1]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for repetition in range(repetitions):
        for name, work in works.items():
            seconds[name].append(timed(work, target))
        told(progress, repetition + 1, repetitions, "drawing images")
    promised = _read_per_token(dense) / _read_per_token(pruned)
    drawn = seconds["generate"]
    figures = [
        Figure.of("generate", "images/s", [batch / taken for taken in drawn]),
        Figure.of("generate, pruned", "images/s", [batch / taken for taken in seconds["generate, pruned"]]),
        Figure.of("generate / bare forwards", "x", quotients(drawn, seconds["bare forwards"]), "<= 1.3"),
        Figure.of(
            f"images/s, batch {batch} / batch 1",
            "x",
            [batch * gain for gain in quotients(seconds["generate, one image"], drawn)],
            ">= 5 at batch 16",
        ),
        Figure.of(
            "images/s, pruned / dense", "x", quotients(drawn, seconds["generate, pruned"]), f"promised {promised:.2f}"
        ),
    ]
    settings = {**asdict(shape), "ratio": ratio, "grid": grid, "batch": batch}
    settings |= {"parameters_dense": dense.parameters, "parameters_pruned": pruned.parameters}
    return Benchmark("images", str(dense.device), dtype_name(dense.dtype), settings, figures)


@torch.inference_mode()
def _bare_forwards(model: LlamaGen, rows: int) -> None:
    """The decoder alone over as many codes as an image has."""
    steps = model.grid**2
    cache = reserved_cache(model.layers, steps)
    ids = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
    for _ in range(steps):
        model.module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


@dataclass(frozen=True)
class _Memory:
    """What pruning needed, in bytes: `growth` is the peak over the state before."""

    growth: int
    weights: int
    pruned: int
    grams: int
    device: str
    dtype: str


def _in_fresh_process(*args: Any) -> _Memory:
    """`_prune_memory` where no memory is left over from before, which would hide what it needs."""
    # Ctrl-C reaches the whole process group; the message is the parent's to print.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=signal.signal, initargs=ignore) as pool:
        return pool.submit(_prune_memory, *args).result()


def _prune_memory(shape: Shape, ratio: float, device: str, dtype: str) -> _Memory:
    model = random_llama(shape, device=device, dtype=dtype)
    stats = random_statistics(model, shape)
    plan = _plan(model, stats, ratio)
    pruned: list[Model] = []
    grown = growth(lambda: pruned.append(prune(model, plan, stats)), model.device)
    grams = sum(module.gram.numel() * module.gram.element_size() for module in stats.modules.values())
    return _Memory(grown, model.bytes, pruned[0].bytes, grams, str(model.device), dtype_name(model.dtype))


def _plan(model: Model, stats: CalibrationStats, ratio: float) -> PruningPlan:
    return allocate(score(model, stats), Recipe(ratio=ratio, allocation="uniform"))


def _read_per_token(model: Model) -> int:
    return model.parameters - model.module.get_input_embeddings().weight.numel()
