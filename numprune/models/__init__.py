"""Loading models and describing what of them can be pruned."""

from numprune.models.adapter import Adapter, Block, Kind, ModuleKey, Section, register
from numprune.models.embedded import DEFAULT_MODEL, embedded_models, held_out_text
from numprune.models.loading import load
from numprune.models.model import Model

__all__ = [
    "DEFAULT_MODEL",
    "Adapter",
    "Block",
    "Kind",
    "Model",
    "ModuleKey",
    "Section",
    "embedded_models",
    "held_out_text",
    "load",
    "register",
]
