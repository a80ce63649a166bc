"""The public names. `numprune` itself offers them too, and imports this module when the first one is used."""

from numprune import export
from numprune.allocation import PruningPlan, allocate
from numprune.calibration import DATASETS, CalibrationStats, calibrate
from numprune.compensation import compensate
from numprune.errors import (
    Cancelled,
    InputError,
    LoadError,
    NumericalError,
    NumpruneError,
    UnsupportedArchitecture,
)
from numprune.evaluation import (
    PAPER_TASKS,
    AttentionPatterns,
    Divergence,
    Perplexity,
    Speed,
    SweepPoint,
    TaskScore,
    ZeroShot,
    attention_patterns,
    divergence,
    measure_speed,
    perplexity,
    sweep,
    zero_shot,
)
from numprune.evaluation.methods import Bench, Cell, compare_methods
from numprune.export import FORMATS, Exported, formats_for, model_card, push_to_hub
from numprune.footprint import Sizes, sizes
from numprune.generation import Sampling, generate, stream_text
from numprune.healing import Healing, heal
from numprune.models import Model, ModuleKey, embedded_models, held_out_text, load
from numprune.models.llamagen import Captions, LlamaGen, encode_captions, load_checkpoint
from numprune.presets import DEFAULT_PRESET, METHODS, PRESETS, Preset, preset
from numprune.pruning import PruningReport, prune, prune_as_planned
from numprune.recipe import CalibrationRecipe, Recipe
from numprune.refinement import refine
from numprune.scoring import SCORERS, ScoreTable, agreement, score, scorer
from numprune.slicing import slicegpt
from numprune.suggestion import Sensitivity, sensitivity, suggest

__all__ = [
    "DATASETS",
    "DEFAULT_PRESET",
    "FORMATS",
    "METHODS",
    "PAPER_TASKS",
    "PRESETS",
    "SCORERS",
    "AttentionPatterns",
    "Bench",
    "CalibrationRecipe",
    "CalibrationStats",
    "Cancelled",
    "Captions",
    "Cell",
    "Divergence",
    "Exported",
    "Healing",
    "InputError",
    "LlamaGen",
    "LoadError",
    "Model",
    "ModuleKey",
    "NumericalError",
    "NumpruneError",
    "Perplexity",
    "Preset",
    "PruningPlan",
    "PruningReport",
    "Recipe",
    "Sampling",
    "ScoreTable",
    "Sensitivity",
    "Sizes",
    "Speed",
    "SweepPoint",
    "TaskScore",
    "UnsupportedArchitecture",
    "ZeroShot",
    "agreement",
    "allocate",
    "attention_patterns",
    "calibrate",
    "compare_methods",
    "compensate",
    "divergence",
    "embedded_models",
    "encode_captions",
    "export",
    "formats_for",
    "generate",
    "heal",
    "held_out_text",
    "load",
    "load_checkpoint",
    "measure_speed",
    "model_card",
    "perplexity",
    "preset",
    "prune",
    "prune_as_planned",
    "push_to_hub",
    "refine",
    "score",
    "scorer",
    "sensitivity",
    "sizes",
    "slicegpt",
    "stream_text",
    "suggest",
    "sweep",
    "zero_shot",
]
