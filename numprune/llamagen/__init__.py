"""LlamaGen (Sun et al. 2024): a Llama decoder over the codes of a VQ image tokenizer."""

from numprune.llamagen import adapter  # noqa: F401  (registers itself)
from numprune.llamagen.captions import CAPTION_FILES, Captions, encode_captions
from numprune.llamagen.checkpoint import TEXT_VQ_FILE, VQ_FILE, load_checkpoint, load_vq
from numprune.llamagen.model import LlamaGen, build
from numprune.llamagen.network import LlamaGenConfig, LlamaGenForImages

__all__ = [
    "CAPTION_FILES",
    "TEXT_VQ_FILE",
    "VQ_FILE",
    "Captions",
    "LlamaGen",
    "LlamaGenConfig",
    "LlamaGenForImages",
    "build",
    "encode_captions",
    "load_checkpoint",
    "load_vq",
]
