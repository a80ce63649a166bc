"""Opening models: embedded names, hub ids, folders and checkpoints."""

from numprune.loading.opening import load

__all__ = ["load"]
