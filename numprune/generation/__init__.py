"""Writing text with a dense or a pruned model."""

from numprune.lazy import lazily

__all__, __getattr__ = lazily(__name__, {"numprune.generation.text": "Sampling generate stream_text"})
