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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numprune.public import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the public names on first use: `numprune --help` must not wait for torch and transformers."""
    if not name.startswith("__"):
        public = import_module("numprune.public")
        globals().update({known: getattr(public, known) for known in public.__all__})
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module 'numprune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("numprune.public").__all__})
