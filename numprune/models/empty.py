"""Building a network without memory for its weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_here = threading.local()
_patching = threading.Lock()
_inside = 0
_register = nn.Module.register_parameter


@contextmanager
def without_memory() -> Iterator[None]:
    """Put the parameters that this thread makes on the meta device; buffers are made as they are.

    As `accelerate.init_empty_weights`, which does the same to what other threads make meanwhile: a model that is pruned
    or loaded for one visitor would lose its weights while the page of another is drawn.
    """
    global _inside
    with _patching:
        if _inside == 0:
            nn.Module.register_parameter = _register_here
        _inside += 1
    before, _here.active = getattr(_here, "active", False), True
    try:
        yield
    finally:
        _here.active = before
        with _patching:
            _inside -= 1
            if _inside == 0:
                nn.Module.register_parameter = _register


def _register_here(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    if parameter is not None and getattr(_here, "active", False):
        parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    _register(module, name, parameter)
