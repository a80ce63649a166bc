"""What a move of the ratio slider costs the server, on a table as large as a 7B model's."""

from __future__ import annotations

import json
import time
from typing import Any

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
from numprune.ui.channel import apply_all, previewed
from numprune.ui.records import Loaded
from numprune.ui.session import LoadRequest
from numprune.ui.shared import Shared, View
from numprune.ui.workbench import Workbench

SEVEN_BILLION = Shape(hidden=4096, channels=11008, layers=32, heads=32, vocabulary=32000)
AIMS = {"time": "<= 0.15", "payload": "<= 20,000"}
OWNER = "bench"


def bench_dashboard(
    shape: Shape = SEVEN_BILLION, *, repetitions: int = 20, progress: Progress | None = None
) -> Benchmark:
    """Time and payload of one ratio change: the plan, both heatmaps, the table, the prediction and the recipe.

    The model has the stated shape and no memory (meta tensors), its scores are random; nothing here reads weights.
    """
    loaded = synthetic(shape)
    workbench = Workbench(loaded.model, budget=0)
    workbench.put(loaded, OWNER)
    _, shared = compose(workbench)
    workbench.enter(OWNER, workbench.fresh(loaded))
    figures = []
    for order in ("sorted", "index"):
        workbench.look_by(OWNER, order=order)
        shared.updates(View(workbench, OWNER, workbench.session(OWNER)), "opened")
        for name, one in (("ratio change", ratio_change), ("drag", drag)):
            times, sizes = [], []
            for repetition in range(repetitions + 1):
                began = time.perf_counter()
                answer = one(shared, 0.1 + 0.7 * repetition / repetitions)
                took = time.perf_counter() - began
                if repetition:
                    times.append(took)
                    sizes.append(len(json.dumps(answer, default=str)))
                if progress is not None:
                    progress(repetition + 1, repetitions + 1, f"{name} {order}")
            figures.append(Figure.of(f"{name}, {order}", "s", times, AIMS["time"]))
            figures.append(Figure.of(f"payload of a {name}, {order}", "bytes", sizes, AIMS["payload"]))
    return Benchmark("dashboard", "cpu", "float64 scores", dict(vars(shape)), figures)


def ratio_change(shared: Shared, ratio: float) -> list[Any]:
    """What the server answers to a moved ratio."""
    workbench = shared.workbench
    message = json.dumps([{"kind": "ratio", "ratio": ratio, "n": workbench.seen(OWNER) + 1}])
    apply_all(workbench, OWNER, message, [])
    view = View(workbench, OWNER, workbench.session(OWNER))
    return [value for value in shared.updates(view, "planned").values()]


def drag(shared: Shared, ratio: float) -> dict[str, Any] | None:
    """What the server answers while an edge is dragged."""
    edit = {"kind": "cells", "cells": [["3.mlp", f"{ratio:.4f}"]]}
    return previewed(shared.workbench, {"token": shared.workbench.token(OWNER), "edits": [edit]})


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
    scores = ScoreTable(modules, "fisher", 0.5, model.name, "synthetic", model.parameters)
    stats = CalibrationStats({}, "self", 0, 0, 0, 0, "synthetic")
    return Loaded(LoadRequest(model.name), model, scores, stats)
