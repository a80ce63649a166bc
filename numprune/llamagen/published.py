"""What LlamaGen's own code and files have: names of tensors, and sizes that no file states."""

from __future__ import annotations

PIXELS_PER_CODE = 16
"""Along one side."""

NORM_EPS, ROPE_THETA = 1e-5, 10000.0
"""Norm epsilon and rotary base of every decoder."""

NULL_CAPTION = "cls_embedding.uncond_embedding"
"""The features that stand for no caption, (tokens, size); only text-conditional decoders have them."""

CAPTION_PROJECTION = "cls_embedding.cap_proj"
"""The two linears, fc1 and fc2, from a caption's features to the embedding."""

LAYER_NAMES = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""Weights of a layer by their published names, and what transformers calls them; wqkv holds q, k and v fused."""
