"""Writing text with a dense or a pruned model."""

from numprune.generation.text import Sampling, generate, stream_text

__all__ = ["Sampling", "generate", "stream_text"]
