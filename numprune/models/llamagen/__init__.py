"""LlamaGen (Sun et al. 2024): a Llama decoder over the codes of a VQ image tokenizer."""

from numprune.models.llamagen.checkpoint import VQ_FILE, load_checkpoint, load_vq
from numprune.models.llamagen.model import LlamaGen, build
from numprune.models.llamagen.network import LlamaGenConfig, LlamaGenForImages

__all__ = ["VQ_FILE", "LlamaGen", "LlamaGenConfig", "LlamaGenForImages", "build", "load_checkpoint", "load_vq"]
