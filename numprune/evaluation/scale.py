"""What pruning takes at sizes of real models: measured on one with random weights, counted for larger ones."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from numprune.errors import NumpruneError, Progress
from numprune.evaluation.benchmark import Benchmark, Figure, told
from numprune.evaluation.random_models import Shape, llama_config, random_llama
from numprune.layerwise.stage import needs_in_memory, needs_layer_by_layer
from numprune.loading import load
from numprune.models.adapter import adapter_for
from numprune.models.embedded import DEFAULT_MODEL, held_out_text
from numprune.models.empty import without_memory
from numprune.models.model import Model

MEASURED = Shape(hidden=2048, channels=5632, layers=24, heads=16, vocabulary=32000)
"""1.3 billion parameters."""
COUNTED = {
    "7B": Shape(hidden=4096, channels=11008, layers=32, heads=32, vocabulary=32000),
    "70B": Shape(hidden=8192, channels=28672, layers=80, heads=64, vocabulary=32000),
}
CARDS = (24e9, 48e9, 80e9)
PAPER = (128, 2048)
"""Sequences and tokens the counts are for."""
EVERY = 0.02
"""Seconds between two looks at a process."""
ROADS = {"in memory": "1000T", "layer by layer": "1"}


def bench_scale(
    shape: Shape = MEASURED,
    *,
    samples: int = 16,
    sequence_length: int = 512,
    ratio: float = 0.3,
    roads: Sequence[str] = tuple(ROADS),
    progress: Progress | None = None,
) -> Benchmark:
    """`numprune prune --preset paper` of a random Llama in bfloat16 on disk, in processes of their own, on the CPU: the
    peak of their anonymous memory (RssAnon; the mapped file is not in it) and their time, held and layer by layer.

    Raises:
        NumpruneError: a process fails, or the system does not tell the memory of processes.
    """
    figures, notes = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        model = random_llama(shape, device="cpu", dtype="bfloat16")
        model.module.save_pretrained(folder)
        load(DEFAULT_MODEL, device="cpu").tokenizer.save_pretrained(folder)
        outline = _outline(shape)
        del model
        for done, road in enumerate(roads):
            told(progress, done, len(roads), f"pruning {road}")
            out = Path(place) / "out"
            command = [sys.executable, "-m", "numprune", "prune", str(folder), "--preset", "paper"]
            command += ["--ratio", str(ratio), "--calibration", str(held_out_text()), "--samples", str(samples)]
            command += ["--sequence-length", str(sequence_length), "--device", "cpu", "--out", str(out), "--quiet"]
            limit = ROADS[road] if road == "in memory" else _least(outline, samples, sequence_length, ratio)
            seconds, peak = _watched([*command, "--memory", limit], Path(place) / "log")
            figures.append(Figure.of(f"{road}, peak of anonymous memory", "GB", [peak / 1e9]))
            figures.append(Figure.of(f"{road}, whole command", "s", [seconds]))
        told(progress, len(roads), len(roads), "pruning")
    size = (samples, sequence_length)
    counts = needs_layer_by_layer(outline, 4, size, ratio), needs_in_memory(outline, 4, size, ratio)
    figures.append(Figure.of("layer by layer, counted before", "GB", [counts[0].total / 1e9]))
    figures.append(Figure.of("in memory, counted before", "GB", [counts[1].total / 1e9]))
    notes.append("Counts leave the program itself out: Python, torch and transformers take about 0.3 GB.")
    settings = {**asdict(shape), "samples": samples, "sequence_length": sequence_length, "ratio": ratio}
    return Benchmark("scale", "cpu", "bfloat16 on disk, computed in float32", settings, figures, notes)


def counted(ratio: float = 0.3) -> list[dict[str, object]]:
    """What larger models take in bfloat16 on 128 x 2048 tokens, in bytes, and on which cards that fits: a row a model
    and road, from the counts that `--memory auto` goes by."""
    rows = []
    for name, shape in COUNTED.items():
        model = _outline(shape)
        disk = 8 * sum(block.last.in_features**2 for block in model.blocks)
        for road, count in (("in memory", needs_in_memory), ("layer by layer", needs_layer_by_layer)):
            needs = count(model, 2, PAPER, ratio)
            layers = road == "layer by layer"
            on_device = needs.total - (needs.streams if layers else 0)
            rows.append(
                {
                    "model": name,
                    "road": road,
                    "device": on_device,
                    "host": needs.streams if layers else 0,
                    "disk": disk if layers else 0,
                    "fits": [card for card in CARDS if on_device <= card],
                }
            )
    return rows


def _outline(shape: Shape) -> Model:
    config = llama_config(shape)
    adapter = adapter_for(config)
    with without_memory():
        module = adapter.auto_class.from_config(config)
    return Model(module=module, tokenizer=None, adapter=adapter, name="outline")


def _least(model: Model, samples: int, length: int, ratio: float) -> str:
    """Bytes that a layer at a time fits into and the whole does not."""
    size = (samples, length)
    layers, whole = (count(model, 4, size, ratio).total for count in (needs_layer_by_layer, needs_in_memory))
    return str(int(np.mean([layers, whole])))


def _watched(command: list[str], log: Path) -> tuple[float, int]:
    """Run a command; returns its seconds and the peak of its anonymous memory in bytes."""
    began, peak = time.monotonic(), 0
    with log.open("w") as told_there:
        process = subprocess.Popen(command, stdout=told_there, stderr=told_there)
        status = Path(f"/proc/{process.pid}/status")
        if not status.is_file():
            process.kill()
            raise NumpruneError("This system does not tell the memory of a process; run this benchmark on Linux.")
        while process.poll() is None:
            peak = max(peak, _anonymous(status))
            time.sleep(EVERY)
    if process.returncode:
        raise NumpruneError(f"numprune prune failed: {log.read_text().strip()[-500:]}")
    return time.monotonic() - began, peak


def _anonymous(status: Path) -> int:
    try:
        lines = status.read_text().splitlines()
    except ProcessLookupError:  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)
