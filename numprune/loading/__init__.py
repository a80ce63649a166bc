"""Opening models: embedded names, hub ids, folders and checkpoints."""

from numprune.lazy import lazily

__all__, __getattr__ = lazily(__name__, {"numprune.loading.opening": "load"})
