"""Opening models: embedded names, hub ids, folders and checkpoints."""

from numprune.loading.load import load

__all__ = ["load"]
