"""numprune: structural pruning of autoregressive transformers that a person can see, steer and trust.

    model = numprune.load("tiny-stories")
    stats = numprune.calibrate(model, "self")
    plan = numprune.allocate(numprune.score(model, stats), numprune.Recipe(ratio=0.3))
    pruned = numprune.prune(model, plan, stats)
    pruned.save("smaller")

The method is Shen et al., *Numerical Pruning for Efficient Autoregressive Models*, AAAI 2025 (arXiv 2412.12441).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "numprune.allocation.depth": "check_depth choose_depth with_depth",
    "numprune.allocation.frontier": "Frontier frontier predicted_loss",
    "numprune.allocation.search": "Sensitivity sensitivity suggest",
    "numprune.allocation.speedup": "check_speedup choose_speedup",
    "numprune.allocation.threshold": "allocate",
    "numprune.calibration": "CalibrationStats DATASETS calibrate calibrate_by_recipe",
    "numprune.errors": "Cancelled InputError LoadError NumericalError NumpruneError UnsupportedArchitecture",
    "numprune.evaluation.attention": "AttentionPatterns attention_patterns",
    "numprune.evaluation.cells": "Cell",
    "numprune.evaluation.divergence": "Divergence divergence",
    "numprune.evaluation.footprint": "Sizes sizes",
    "numprune.evaluation.latency": "latency_of measure_latency",
    "numprune.evaluation.time_budget": "reached_speedup with_speedup",
    "numprune.evaluation.measurement": "Bench",
    "numprune.evaluation.methods": "compare_methods",
    "numprune.evaluation.perplexity": "Perplexity perplexity",
    "numprune.evaluation.speed": "Speed measure_speed",
    "numprune.evaluation.speed_comparison": "SpeedComparison compare_speed",
    "numprune.evaluation.sweep": "SweepPoint sweep",
    "numprune.evaluation.zero_shot": "PAPER_TASKS TaskScore ZeroShot zero_shot",
    "numprune.export": "Exported FORMATS formats_for model_card push_to_hub",
    "numprune.fitting.compensation": "compensate",
    "numprune.fitting.healing": "Healing heal",
    "numprune.generation": "Sampling generate stream_text",
    "numprune.layerwise": "prune_layerwise score_layerwise",
    "numprune.llamagen": "Captions LlamaGen encode_captions load_checkpoint",
    "numprune.loading": "load",
    "numprune.models": "Model embedded_models held_out_text",
    "numprune.models.outline": "Outline outline_of",
    "numprune.plan.keys": "ModuleKey",
    "numprune.plan.latency": "Latency",
    "numprune.plan.plan": "PruningPlan",
    "numprune.plan.presets": "DEFAULT_PRESET METHODS PRESETS Preset preset",
    "numprune.plan.recipe": "CalibrationRecipe Recipe",
    "numprune.plan.report": "PruningReport",
    "numprune.pruning": "prune",
    "numprune.ranks": "Ranks join_ranks",
    "numprune.scoring": "PRICED SCORERS ScoreTable check_scorer score scorer",
    "numprune.scoring.comparison": "agreement",
    "numprune.scoring.depth": "DEPTH_SCORERS DepthScores score_depth",
    "numprune.scoring.score_file": "ScoreFile read_score_file read_scores shipped_scores write_scores",
    "numprune.slicing.principal": "slicegpt",
}
"""The public names by the module they are defined in."""
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_HOME, "export"])


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `numprune --help` must not wait for torch and transformers."""
    if name == "export":
        return import_module("numprune.export")
    if name not in _HOME:
        raise AttributeError(f"module 'numprune' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
