"""The public names. `numprune` itself offers them too, and imports this module when the first one is used."""

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
    AttentionPatterns,
    Divergence,
    Perplexity,
    Speed,
    SweepPoint,
    attention_patterns,
    divergence,
    measure_speed,
    perplexity,
    sweep,
)
from numprune.footprint import Sizes, sizes
from numprune.generation import Sampling, generate, stream_text
from numprune.models import Model, ModuleKey, embedded_models, held_out_text, load
from numprune.models.llamagen import Captions, LlamaGen, encode_captions, load_checkpoint
from numprune.pruning import PruningReport, prune
from numprune.recipe import CalibrationRecipe, Recipe
from numprune.scoring import SCORERS, ScoreTable, score, scorer
from numprune.suggestion import Sensitivity, sensitivity, suggest

__all__ = [
    "DATASETS",
    "SCORERS",
    "AttentionPatterns",
    "CalibrationRecipe",
    "CalibrationStats",
    "Cancelled",
    "Captions",
    "Divergence",
    "InputError",
    "LlamaGen",
    "LoadError",
    "Model",
    "ModuleKey",
    "NumericalError",
    "NumpruneError",
    "Perplexity",
    "PruningPlan",
    "PruningReport",
    "Recipe",
    "Sampling",
    "ScoreTable",
    "Sensitivity",
    "Sizes",
    "Speed",
    "SweepPoint",
    "UnsupportedArchitecture",
    "allocate",
    "attention_patterns",
    "calibrate",
    "compensate",
    "divergence",
    "embedded_models",
    "encode_captions",
    "generate",
    "held_out_text",
    "load",
    "load_checkpoint",
    "measure_speed",
    "perplexity",
    "prune",
    "score",
    "scorer",
    "sensitivity",
    "sizes",
    "stream_text",
    "suggest",
    "sweep",
]
