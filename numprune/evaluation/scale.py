"""What pruning takes at sizes of real models: measured on one with random weights, counted for larger ones."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import torch

from numprune.errors import NumpruneError, Progress
from numprune.evaluation.benchmark import Benchmark, Figure, told
from numprune.evaluation.random_models import Shape, llama_config, random_llama
from numprune.layerwise.run import prune_layerwise
from numprune.layerwise.stage import disk_layer_by_layer, needs_in_memory, needs_layer_by_layer
from numprune.loading import load
from numprune.models.adapter import adapter_for
from numprune.models.embedded import DEFAULT_MODEL, held_out_text
from numprune.models.empty import without_memory
from numprune.models.model import Model
from numprune.models.placement import resolve_device
from numprune.plan.presets import preset
from numprune.plan.recipe import CalibrationRecipe, Recipe

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
LAYERS = "layer by layer"
ROADS = {"in memory": "1000T", LAYERS: None}
"""Ways to prune, with the `--memory` that makes one be taken; None where that depends on the model."""


def bench_scale(
    shape: Shape = MEASURED,
    *,
    samples: int = 16,
    sequence_length: int = 512,
    ratio: float = 0.3,
    presets: Sequence[str] = ("paper", "balanced"),
    roads: Sequence[str] = tuple(ROADS),
    device: str = "cpu",
    card: float = CARDS[0],
    progress: Progress | None = None,
) -> Benchmark:
    """`numprune prune` of a random Llama in bfloat16 on disk: memory and time, held and layer by layer.

    On a CPU in processes of their own, by the peak of their anonymous memory (RssAnon; the mapped file is not in it).
    On a GPU layer by layer alone, in this process, which may take `card` bytes of its memory, by the peak of what is
    allocated there.

    Raises:
        NumpruneError: a process fails, or the system does not tell the memory of processes.
    """
    target = resolve_device(device)
    figures, notes = [], []
    recipe = Recipe(ratio=ratio, calibration=CalibrationRecipe(str(held_out_text()), samples, sequence_length))
    recipes = {name: preset(name).applied(recipe) for name in presets}
    runs = list(product(presets, roads if target.type == "cpu" else [LAYERS]))
    outline = _outline(shape)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        model = random_llama(shape, device=device, dtype="bfloat16")
        model.module.save_pretrained(folder)
        load(DEFAULT_MODEL, device="cpu").tokenizer.save_pretrained(folder)
        del model
        gc.collect()
        for done, (name, road) in enumerate(runs):
            told(progress, done, len(runs), f"pruning by {name}, {road}")
            if target.type == "cpu":
                seconds, peak = _in_a_process(folder, recipes[name], name, road, outline, Path(place))
            else:
                seconds, peak = _on_a_card(folder, recipes[name], target, card, Path(place) / "out")
            shutil.rmtree(Path(place) / "out")
            figures.append(Figure.of(f"{name} {road}, peak of memory", "GB", [peak / 1e9]))
            figures.append(Figure.of(f"{name} {road}, seconds", "s", [seconds]))
            itemsize = 4 if target.type == "cpu" else 2
            figures.append(
                Figure.of(
                    f"{name} {road}, counted before", "GB", [_count(outline, itemsize, recipes[name], road, target)]
                )
            )
        told(progress, len(runs), len(runs), "pruning")
    notes.append(
        "Counts leave the program itself out: Python, torch and transformers take about 0.3 GB of a CPU's memory."
    )
    settings = {**asdict(shape), "samples": samples, "sequence_length": sequence_length, "ratio": ratio}
    if target.type == "cpu":
        return Benchmark("scale", "cpu", "bfloat16 on disk, computed in float32", settings, figures, notes)
    name = torch.cuda.get_device_name(target)
    return Benchmark("scale", name, "bfloat16", {**settings, "card": f"{card / 1e9:g} GB"}, figures, notes)


def _count(outline: Model, itemsize: int, recipe: Recipe, road: str, device: torch.device) -> float:
    """Memory counted for a road, in GB."""
    if road == LAYERS:
        return needs_layer_by_layer(outline, itemsize, recipe, device).on(device) / 1e9
    return needs_in_memory(outline, itemsize, recipe).total / 1e9


def _in_a_process(folder: Path, recipe: Recipe, name: str, road: str, outline: Model, place: Path) -> tuple[float, int]:
    """Seconds and peak of anonymous memory of `numprune prune` on a CPU."""
    source = recipe.calibration
    command = [sys.executable, "-m", "numprune", "prune", str(folder), "--preset", name]
    command += ["--ratio", str(recipe.ratio), "--calibration", str(source.data), "--samples", str(source.samples)]
    command += ["--sequence-length", str(source.sequence_length), "--device", "cpu", "--out", str(place / "out")]
    limit = ROADS[road] or _least(outline, recipe)
    return _watched([*command, "--quiet", "--memory", limit], place / "log")


def _on_a_card(folder: Path, recipe: Recipe, device: torch.device, card: float, out: Path) -> tuple[float, int]:
    """Seconds and peak of allocated memory of `prune_layerwise` on a GPU with so many bytes."""
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, card / torch.cuda.mem_get_info(index)[1]), index)
    torch.cuda.reset_peak_memory_stats(index)
    began = time.monotonic()
    try:
        model = load(folder, device="cpu", dtype="checkpoint")
        prune_layerwise(model, recipe, out, device=str(device))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)
    return time.monotonic() - began, torch.cuda.max_memory_allocated(index)


def counted(ratio: float = 0.3) -> list[dict[str, object]]:
    """What larger models take in bfloat16 on 128 x 2048 tokens, in bytes, and on which cards that fits: a row a model,
    preset and road, from the counts that `--memory auto` goes by."""
    rows, card = [], torch.device("cuda")
    for name, shape in COUNTED.items():
        model = _outline(shape)
        for by in ("paper", "balanced"):
            recipe = preset(by).applied(Recipe(ratio=ratio, calibration=CalibrationRecipe(None, *PAPER)))
            for road in ROADS:
                layers = road == LAYERS
                needs = needs_layer_by_layer(model, 2, recipe, card) if layers else needs_in_memory(model, 2, recipe)
                on_device = needs.on(card) if layers else needs.total
                rows.append(
                    {
                        "model": name,
                        "preset": by,
                        "road": road,
                        "device": on_device,
                        "host": needs.streams if layers else 0,
                        "disk": disk_layer_by_layer(model, 2, recipe) if layers else 0,
                        "fits": [size for size in CARDS if on_device <= size],
                    }
                )
    return rows


def _outline(shape: Shape) -> Model:
    config = llama_config(shape)
    adapter = adapter_for(config)
    with without_memory():
        module = adapter.auto_class.from_config(config)
    return Model(module=module, tokenizer=None, adapter=adapter, name="outline")


def _least(model: Model, recipe: Recipe) -> str:
    """Bytes that a layer at a time fits into and the whole does not."""
    layers = needs_layer_by_layer(model, 4, recipe, torch.device("cpu")).total
    return str(int(np.mean([layers, needs_in_memory(model, 4, recipe).total])))


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
