"""A dense and a pruned model timed in turn in the engines that are at hand, beside what their sizes promise."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from numprune.errors import CancelEvent, InputError, Progress, UnsupportedArchitecture, check_cancelled
from numprune.evaluation.engines.counts import Counts, of_gguf, of_model
from numprune.evaluation.engines.forms import ENGINES, chosen, form
from numprune.evaluation.engines.processes import Refused, Worker, own_environment, vllm_environment
from numprune.evaluation.engines.records import (
    KIND,
    AtBatch,
    Counted,
    EngineComparison,
    EngineResult,
    InEngine,
    Measured,
)
from numprune.evaluation.repeats import FEWEST
from numprune.evaluation.speed import spread
from numprune.export.formats import FORMATS
from numprune.export.onnx import GRAPH
from numprune.loading.opening import load
from numprune.loading.sources import find_source
from numprune.models.model import Model
from numprune.models.placement import resolve_device, resolve_dtype

BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class _Prepared:
    """The numbers of a model, and what each engine is to open of it: a path or name, or why there is nothing."""

    counts: Counts
    forms: dict[str, str | Refused]


def compare_engines(
    dense: str | os.PathLike[str],
    pruned: str | os.PathLike[str],
    *,
    engines: Sequence[str] | None = None,
    python: str | os.PathLike[str] | None = None,
    batches: Sequence[int] = BATCHES,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    repetitions: int = FEWEST,
    device: str = "auto",
    dtype: str = "auto",
    gguf_dtype: str = "f16",
    eager: bool = False,
    progress: Progress | None = None,
    cancel: CancelEvent | None = None,
) -> EngineComparison:
    """Time two models in every engine: at each batch both once to warm up, then A B A B.

    Each model runs in a process of its own, which waits while the other one runs. What an engine does not open is
    exported to a temporary folder first. Nothing else should run on the device meanwhile.

    Args:
        dense, pruned: names or paths that `numprune.load` opens. The second is compared with the first.
        engines: names in `ENGINES`; None for all that are at hand.
        python: the Python of an environment with vLLM.
        batches: sequences at once.
        prompt_tokens, new_tokens: read, and decoded after the first token.
        repetitions: timed runs of each model, at least 3.
        device: as of `numprune.load`; "cpu" also keeps llama.cpp off a GPU. ONNX Runtime uses none, and vLLM what its
            environment is for.
        dtype: as of `numprune.load`, for transformers and vLLM.
        gguf_dtype: of a GGUF file that is written.
        eager: run vLLM without torch.compile.

    Returns:
        All figures. An engine that cannot run one of the models, or a batch, is there with the reason.

    Raises:
        InputError: an engine is not known or not at hand, the vocabularies differ, a number is out of range, or the
            lengths do not fit a model.
        LoadError: a model cannot be opened.
        Cancelled: `cancel` was set.
    """
    _check_numbers(batches, prompt_tokens, new_tokens, repetitions)
    if gguf_dtype not in FORMATS["gguf"].options["dtype"]:
        raise InputError(f"gguf_dtype is '{gguf_dtype}'; use {', '.join(FORMATS['gguf'].options['dtype'])}.")
    resolve_dtype(dtype, None, resolve_device(device))
    batches = list(dict.fromkeys(batches))
    names = chosen(engines, None if python is None else os.fspath(python))
    threads = torch.get_num_threads()
    stages = _Stages(progress, names, len(batches) * (1 + repetitions) * 2)
    with TemporaryDirectory(prefix="numprune-engines-") as folder:
        models: list[_Prepared] = []
        for role, name in (("dense", dense), ("pruned", pruned)):
            (own := Path(folder) / role).mkdir()
            model, counts, file = _open(os.fspath(name), prompt_tokens)
            counts.check_fits(prompt_tokens, new_tokens)
            if models:
                counts.check_vocabulary(models[0].counts)
            forms: dict[str, str | Refused] = {}
            for engine in names:
                check_cancelled(cancel)
                try:
                    how = {"gguf_dtype": gguf_dtype, "progress": progress, "cancel": cancel}
                    forms[engine] = form(engine, counts.name, model, file, own, **how)
                except Refused as refusal:
                    forms[engine] = refusal
            models.append(_Prepared(counts, forms))
            del model
        asked = {
            "threads": threads,
            "device": device,
            "dtype": dtype,
            "longest": prompt_tokens + new_tokens + 1,
            "batch": max(batches),
            "eager": eager,
        }
        run = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
        results = []
        for engine in names:
            stages.begin(engine)
            results.append(_engine(engine, models, asked, python, batches, repetitions, run, stages, cancel))
    return EngineComparison(
        kind=KIND,
        dense=Counted(models[0].counts.name, models[0].counts.parameters),
        pruned=Counted(models[1].counts.name, models[1].counts.parameters),
        **run,
        repetitions=repetitions,
        threads=threads,
        machine=_machine(),
        engines=results,
    )


def _check_numbers(batches: Sequence[int], prompt_tokens: int, new_tokens: int, repetitions: int) -> None:
    given = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batches": min(batches, default=0)}
    for name, value in given.items():
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1.")
    if repetitions < FEWEST:
        raise InputError(f"repetitions is {repetitions}; give at least {FEWEST}, fewer show no spread.")


def _open(name: str, prompt_tokens: int) -> tuple[Model | None, Counts, Path | None]:
    """A model, its numbers and the GGUF file that it is; no model of a file that only llama.cpp opens."""
    if (Path(name) / GRAPH).is_file() and not any(Path(name).glob("*.safetensors")):
        raise InputError(f"{name} is an ONNX export, whose weights numprune does not read; give what it was made from.")
    source = find_source(name, None)
    file = source.path if source.kind == "gguf" else None
    try:
        # In the type of the checkpoint it takes the least memory; it is counted and written, not run.
        model = load(name, device="cpu", dtype="checkpoint")
    except UnsupportedArchitecture:
        if file is None:
            raise
        return None, of_gguf(file, name, prompt_tokens), file
    if not model.reads_text:
        raise InputError(f"{name} draws images, which these engines do not; give a language model.")
    return model, of_model(model, prompt_tokens), file


def _engine(
    engine: str,
    models: Sequence[_Prepared],
    asked: Mapping[str, Any],
    python: str | os.PathLike[str] | None,
    batches: Sequence[int],
    repetitions: int,
    run: Mapping[str, int],
    stages: _Stages,
    cancel: CancelEvent | None,
) -> EngineResult:
    """Both models in one engine."""
    workers: list[Worker] = []
    with ExitStack() as stack:
        try:
            for model in models:
                workers.append(stack.enter_context(_worker(engine, model, asked, python, cancel)))
        except Refused as refusal:
            role = ("dense", "pruned")[len(workers)]
            return EngineResult(engine, None, None, f"the {role} model: {refusal}", None, None, [])
        facts = [worker.facts for worker in workers]
        rows = [_at_batch(batch, models, workers, repetitions, run, stages) for batch in batches]
    opened = [InEngine(each["runs_as"], each["dtype"], each["weights"]) for each in facts]
    return EngineResult(engine, facts[0]["version"], facts[0]["device"], None, *opened, rows)


def _worker(
    engine: str,
    model: _Prepared,
    asked: Mapping[str, Any],
    python: str | os.PathLike[str] | None,
    cancel: CancelEvent | None,
) -> Worker:
    path = model.forms[engine]
    if isinstance(path, Refused):
        raise path
    question, threads = {**asked, "engine": engine, "path": path}, {"OMP_NUM_THREADS": str(asked["threads"])}
    if ENGINES[engine].needs is not None:
        return Worker(question, own_environment(**threads), cancel=cancel)
    question["engine"], _, implementation = engine.partition("-")
    question["implementation"] = implementation or "auto"
    question |= {"parameters": model.counts.parameters, "cached": model.counts.cached}
    return Worker(question, vllm_environment(**threads), python=os.fspath(python), cancel=cancel)


def _at_batch(
    batch: int,
    models: Sequence[_Prepared],
    workers: Sequence[Worker],
    repetitions: int,
    run: Mapping[str, int],
    stages: _Stages,
) -> AtBatch:
    """Both models at one batch, in turn."""
    step_bytes = [_step_bytes(model, worker.facts, batch, **run) for model, worker in zip(models, workers, strict=True)]
    step, prompt = _quotient(step_bytes), _quotient([model.counts.prompt_flops for model in models])
    runs: list[list[dict[str, Any]]] = [[], []]
    try:
        for done in range(1 + repetitions):
            for each, worker in enumerate(workers):
                answer = worker.ask({"batch": batch, **run})
                stages.step(batch)
                if done:
                    runs[each].append(answer)
    except Refused as refusal:
        role = ("dense", "pruned")[each]
        return AtBatch(batch, f"the {role} model: {refusal}", None, None, None, None, step, prompt)
    measured = [
        _measured(model, worker.facts, batch, answers, **run)
        for model, worker, answers in zip(models, workers, runs, strict=True)
    ]
    decode, prefill = (
        spread([one[phase] / other[phase] for one, other in zip(*runs, strict=True)]) for phase in ("rest", "first")
    )
    return AtBatch(batch, None, *measured, decode, prefill, step, prompt)


def _measured(
    model: _Prepared,
    facts: Mapping[str, Any],
    batch: int,
    answers: Sequence[Mapping[str, Any]],
    *,
    prompt_tokens: int,
    new_tokens: int,
) -> Measured:
    peaks = [answer["peak"] for answer in answers]
    return Measured(
        decode=spread([batch * new_tokens / answer["rest"] for answer in answers]),
        prefill=spread([batch * prompt_tokens / answer["first"] for answer in answers]),
        first_token=spread([answer["first"] for answer in answers]),
        peak_bytes=None if None in peaks else max(peaks),
        kv_bytes=batch * model.counts.cached * facts["cache_itemsize"] * (prompt_tokens + new_tokens),
    )


def _step_bytes(
    model: _Prepared, facts: Mapping[str, Any], batch: int, *, prompt_tokens: int, new_tokens: int
) -> float:
    """Weights that decoding one token reads, and the cache of all sequences half-way through."""
    cache = batch * model.counts.cached * facts["cache_itemsize"] * (prompt_tokens + new_tokens / 2)
    return facts["weights"] * model.counts.read + cache


def _quotient(values: Sequence[float]) -> float:
    dense, pruned = values
    return dense / pruned


def _machine() -> str:
    """Names of the processor and of the GPU."""
    names, info = [], Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
    cpu = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
    return f"{cpu}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else cpu


class _Stages:
    """Tells `progress` of every run.

    Args:
        each: runs that an engine makes where it refuses nothing.
    """

    def __init__(self, progress: Progress | None, engines: Sequence[str], each: int) -> None:
        self._progress, self._engines, self._each = progress, engines, each
        self._engine, self._done = "", 0

    def begin(self, engine: str) -> None:
        """Whatever was refused before counts as done."""
        self._engine, self._done = engine, self._engines.index(engine) * self._each

    def step(self, batch: int) -> None:
        self._done += 1
        if self._progress is not None:
            total = len(self._engines) * self._each
            self._progress(self._done, total, f"timing {self._engine}, batch {batch}")
