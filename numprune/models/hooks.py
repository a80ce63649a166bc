"""Looking at what flows into and out of modules while a model runs.

Hooks are put on a `numprune.models.model.twin`, or on a model that is the caller's own, never on one that others may
run at the same time: a hook sees every run of its module, on whatever thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Before = Callable[[tuple[Any, ...], dict[str, Any]], None]
"""Called with the arguments of a module before it runs."""
After = Callable[[tuple[Any, ...], Any], Any]
"""Called with the positional arguments and the output of a module; what it returns, unless None, goes on instead."""


class Enough(Exception):
    """Raised by a hook to end a forward pass that has come as far as it is needed."""


@contextmanager
def hooked(
    *, before: Mapping[nn.Module, Before] | None = None, after: Mapping[nn.Module, After] | None = None
) -> Iterator[None]:
    """Call functions as these modules run inside the block; `Enough` raised by one ends the block quietly."""
    handles = [
        module.register_forward_pre_hook(lambda _, args, kwargs, call=call: call(args, kwargs), with_kwargs=True)
        for module, call in (before or {}).items()
    ]
    handles += [
        module.register_forward_hook(lambda _, args, output, call=call: call(args, output))
        for module, call in (after or {}).items()
    ]
    try:
        yield
    except Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()


def first(output: Any) -> torch.Tensor:
    """The hidden states of what a module put out."""
    return output[0] if isinstance(output, tuple) else output
