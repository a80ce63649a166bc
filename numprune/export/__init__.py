"""Writing a model in a form that other engines open."""

import sys
from types import ModuleType
from typing import Any

from numprune.lazy import lazily

__all__, _find = lazily(
    __name__,
    {
        "numprune.export.formats": "FORMATS Exported Format check_export export formats_for",
        "numprune.export.hub": "check_repo_id model_card push_to_hub",
    },
)


class _Step(ModuleType):
    """This package, which can be called: `numprune.export(model, ...)` is a step like `numprune.prune`."""

    def __getattr__(self, name: str) -> Any:
        return _find(name)

    def __call__(self, *given: Any, **options: Any) -> Any:
        return self.export(*given, **options)


sys.modules[__name__].__class__ = _Step
