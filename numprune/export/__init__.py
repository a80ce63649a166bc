"""Writing a model in a form that other engines open."""

import sys
from types import ModuleType

from numprune.export import folder, llamagen, onnx, stock, transformers  # noqa: F401  (each registers its format)
from numprune.export.formats import FORMATS, Exported, Format, check_export, export, formats_for
from numprune.export.hub import model_card, push_to_hub

__all__ = [
    "FORMATS",
    "Exported",
    "Format",
    "check_export",
    "export",
    "formats_for",
    "model_card",
    "push_to_hub",
]


class _Step(ModuleType):
    """This package, which can be called: `numprune.export(model, ...)` is a step like `numprune.prune`."""

    __call__ = staticmethod(export)


sys.modules[__name__].__class__ = _Step
