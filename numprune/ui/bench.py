"""What a move of the ratio slider costs the server, on a table as large as a 7B model's."""

from __future__ import annotations

import json
import time

import numpy as np
import torch
from accelerate import init_empty_weights
from transformers import LlamaForCausalLM

from numprune.calibration import CalibrationStats
from numprune.errors import Progress
from numprune.evaluation.benchmark import Benchmark, Figure
from numprune.evaluation.random_models import Shape, llama_config
from numprune.models.adapter import adapter_for
from numprune.models.model import Model
from numprune.scoring.table import ModuleScores, ScoreTable
from numprune.ui.app import compose
from numprune.ui.session import LoadRequest
from numprune.ui.workbench import Loaded, Workbench

SEVEN_BILLION = Shape(hidden=4096, channels=11008, layers=32, heads=32, vocabulary=32000)
AIMS = {"time": "<= 0.3", "payload": "< 1,000,000"}


def bench_dashboard(
    shape: Shape = SEVEN_BILLION, *, repetitions: int = 20, progress: Progress | None = None
) -> Benchmark:
    """Time and payload of one ratio change: the plan, both heatmaps, the table, the prediction and the recipe.

    The model has the stated shape and no memory (meta tensors), its scores are random; nothing here reads weights.
    """
    loaded = synthetic(shape)
    workbench = Workbench(loaded.model, budget=0)
    workbench.put(loaded, "bench")
    _, page = compose(workbench)
    session = workbench.open(loaded, page.session.value)
    figures = []
    for view, order in (("raw", "sorted"), ("rank", "index")):
        given = {page.inspect.view: view, page.inspect.order: order}
        times, sizes = [], []
        for repetition in range(repetitions + 1):
            began = time.perf_counter()
            changed = session.changed("ratio", ratio=0.1 + 0.7 * repetition / repetitions)
            updates = page.planned(changed, given)
            took = time.perf_counter() - began
            if repetition:
                times.append(took)
                shown = (value for part, value in updates.items() if part is not page.session)
                sizes.append(len(json.dumps(list(shown), default=str)))
            if progress is not None:
                progress(repetition + 1, repetitions + 1, f"{view} {order}")
        figures.append(Figure.of(f"ratio change, {view} {order}", "s", times, AIMS["time"]))
        figures.append(Figure.of(f"payload, {view} {order}", "bytes", sizes, AIMS["payload"]))
    return Benchmark("dashboard", "cpu", "float64 scores", dict(vars(shape)), figures)


def synthetic(shape: Shape, seed: int = 0) -> Loaded:
    """A model of a shape without weights, with random scores."""
    config = llama_config(shape)
    with init_empty_weights():
        module = LlamaForCausalLM(config).to(torch.float16)
    model = Model(module=module, tokenizer=None, adapter=adapter_for(config), name="synthetic")
    generator = np.random.default_rng(seed)
    modules = {}
    for block in model.blocks:
        channels = 1 - generator.gamma(0.5, 0.1, block.units * block.width)
        units = channels.reshape(block.units, block.width).mean(1)
        modules[block.key] = ModuleScores(units, channels, block.cost, block.remainder)
    scores = ScoreTable(modules, "newton", 0.5, model.name, "synthetic", model.parameters)
    stats = CalibrationStats({}, "self", 0, 0, 0, 0, "synthetic")
    return Loaded(LoadRequest(model.name), model, stats, scores)
