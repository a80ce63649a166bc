"""What engines that serve a folder for transformers ask of it beyond what transformers does."""

from __future__ import annotations

from numprune.models.layer_sizes import text_config
from numprune.models.model import Model

VLLM_CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Widths of heads that attention on a CPU takes in vLLM 0.32 (`v1/attention/backends/cpu_attn.py`)."""


def head_width(model: Model) -> int:
    """Columns of a head."""
    config = text_config(model.config)
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def vllm_notes(model: Model) -> list[str]:
    """Where vLLM does not serve a model that was written; empty where it does."""
    width = head_width(model)
    if width in VLLM_CPU_HEADS:
        return []
    widths = ", ".join(map(str, VLLM_CPU_HEADS[:-1]))
    return [f"Heads are {width} wide; vLLM on a CPU takes {widths} and {VLLM_CPU_HEADS[-1]}, GPUs take others."]
