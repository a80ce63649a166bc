"""What a moved ratio and a dragged edge cost the server, on score tables as large as a 7B and a 70B model's."""

from __future__ import annotations

import json
import time
from typing import Any

import gradio as gr
import numpy as np
import torch
from transformers import LlamaForCausalLM

from numprune.calibration import CalibrationStats
from numprune.errors import NumpruneError, Progress
from numprune.evaluation.benchmark import Benchmark, Figure
from numprune.evaluation.random_models import Shape, llama_config
from numprune.models.adapter import adapter_for
from numprune.models.empty import without_memory
from numprune.models.model import Model
from numprune.models.outline import counted
from numprune.scoring.table import ModuleScores, ScoreTable
from numprune.ui.app import compose
from numprune.ui.channel import previewed
from numprune.ui.records import Loaded
from numprune.ui.session import LoadRequest
from numprune.ui.shared import Shared, View
from numprune.ui.weights import Here
from numprune.ui.workbench import Workbench

SEVEN_BILLION = Shape(hidden=4096, channels=11008, layers=32, heads=32, vocabulary=32000)
SEVENTY_BILLION = Shape(hidden=8192, channels=28672, layers=80, heads=64, vocabulary=32000)
SECONDS = {SEVEN_BILLION: "<= 0.15", SEVENTY_BILLION: "<= 0.3"}
BYTES = "<= 20,000"
OWNER = "bench"


def bench_dashboard(
    shape: Shape = SEVEN_BILLION, *, repetitions: int = 20, progress: Progress | None = None
) -> Benchmark:
    """Time and payload of the server's answer to a moved ratio and to a dragged edge, by the functions the page uses:
    the plan, the map, the frontier, the budget and the recipe.

    The model has the stated shape and no memory (meta tensors), its scores are random; nothing here reads weights.
    """
    loaded = synthetic(shape)
    workbench = Workbench(loaded.weights, budget=0)
    workbench.put(loaded, OWNER)
    _, shared = compose(workbench)
    workbench.enter(OWNER, workbench.fresh(loaded))
    figures = []
    for order in ("sorted", "index"):
        workbench.look_by(OWNER, order=order)
        shared.updates(View(workbench, OWNER, workbench.session(OWNER)), "opened")
        for name, one in (("ratio", moved), ("drag", dragged)):
            times, sizes = [], []
            for repetition in range(repetitions + 1):
                began = time.perf_counter()
                sent = one(shared, 0.1 + 0.7 * repetition / repetitions)
                took = time.perf_counter() - began
                # The first step sorts the scores, which are kept so.
                if repetition:
                    times.append(took)
                    sizes.append(len(json.dumps(sent, separators=(",", ":"))))
                if progress is not None:
                    progress(repetition + 1, repetitions + 1, f"{name}, channels {order}")
            figures.append(Figure.of(f"{name}, channels {order}", "s", times, SECONDS.get(shape)))
            figures.append(Figure.of(f"payload of a {name}, channels {order}", "bytes", sizes, BYTES))
    return Benchmark("dashboard", "cpu", "float64 scores", dict(vars(shape)), figures)


def moved(shared: Shared, ratio: float) -> list[Any]:
    """What the server sends when the ratio was moved."""
    message = json.dumps([{"kind": "ratio", "ratio": ratio, "n": shared.workbench.seen(OWNER) + 1}])
    updates, problems = shared.answer(OWNER, message)
    if problems:
        raise NumpruneError(f"The step was refused ({problems[0]}), so its time says nothing.")
    return [_sent(value) for value in updates.values()]


def dragged(shared: Shared, ratio: float) -> dict[str, Any]:
    """What the server sends while an edge is dragged."""
    edit = {"kind": "cells", "cells": [["1.mlp", f"{ratio:.4f}"]]}
    plan = previewed(shared.workbench, {"token": shared.workbench.token(OWNER), "edits": [edit]})
    if plan is None:
        raise NumpruneError("The step was refused, so its time says nothing.")
    return plan


def _sent(value: Any) -> Any:
    """A handler's value as gradio sends it: of a component, what it was made with."""
    return value.constructor_args if isinstance(value, gr.blocks.Block) else value


def synthetic(shape: Shape, seed: int = 0) -> Loaded:
    """A model of a shape without weights, with random scores."""
    config = llama_config(shape)
    with without_memory():
        module = LlamaForCausalLM(config).to(torch.float16)
    model = Model(module=module, tokenizer=None, adapter=adapter_for(config), name="synthetic")
    generator = np.random.default_rng(seed)
    modules = {}
    for block in model.blocks:
        channels = 1 - generator.gamma(0.5, 0.1, block.units * block.width)
        units = channels.reshape(block.units, block.width).mean(1)
        modules[block.key] = ModuleScores(units, channels, block.cost, block.remainder)
    scores = ScoreTable(modules, "fisher", 0.5, model.name, "synthetic", model.parameters, model.beside)
    stats = CalibrationStats({}, "self", 0, 0, 0, 0, "synthetic")
    return Loaded(LoadRequest(model.name), Here(model, counted(model, "synthetic")), scores, stats)
