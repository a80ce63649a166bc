"""What of a model can be pruned, and how it is narrowed and run."""

from numprune.models import (  # noqa: F401  (each registers its adapter)
    gpt_neox,
    granite,
    llama,
    multimodal,
    olmo2,
    opt,
    phi3,
    stablelm,
)
from numprune.models.adapter import Adapter, Block, Section, register
from numprune.models.embedded import DEFAULT_MODEL, embedded_models, held_out_text
from numprune.models.model import Model

__all__ = [
    "DEFAULT_MODEL",
    "Adapter",
    "Block",
    "Model",
    "Section",
    "embedded_models",
    "held_out_text",
    "register",
]
