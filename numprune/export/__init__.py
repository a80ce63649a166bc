"""Writing a model in a form that other engines open."""

import sys
from types import ModuleType

from numprune.export import stock, transformers  # noqa: F401  (each registers its format)
from numprune.export.formats import FORMATS, Exported, Format, check_export, export, formats_for

__all__ = ["FORMATS", "Exported", "Format", "check_export", "export", "formats_for"]


class _Step(ModuleType):
    """This package, which can be called: `numprune.export(model, ...)` is a step like `numprune.prune`."""

    __call__ = staticmethod(export)


sys.modules[__name__].__class__ = _Step
