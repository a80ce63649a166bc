"""Tiny random models of every supported architecture, and a tiny tokenizer for them."""

from dataclasses import replace

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from numprune import Model
from numprune.llamagen import LlamaGen, LlamaGenConfig
from numprune.models.adapter import adapter_for
from numprune.models.depth import PER_LAYER
from numprune.models.layer_sizes import text_config
from numprune.scoring import ModuleScores, ScoreTable

VOCABULARY = 112

_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_GQA = {**_LLAMA, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_NEOX = {**_LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
# Two of the three quarters of each head that are rotated, short factors up to 16 tokens and a window above the length.
_PHI4_MINI = {
    **_LLAMA,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "sliding_window": 262144,
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 0.75,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.2, 1.5],
        "long_factor": [1.0, 2.0, 6.0],
    },
}
_MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.4,
    "logits_scaling": 2.0,
}
_STABLELM = {
    **_LLAMA,
    "num_key_value_heads": 2,
    "use_qkv_bias": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
# Codes, classes and the null class make VOCABULARY ids.
_LLAMAGEN = {
    "codes": VOCABULARY - 7,
    "classes": 6,
    "grid": 8,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
# One caption, no caption and the padding: as many ids.
_LLAMAGEN_TEXT = {**_LLAMAGEN, "classes": 1, "condition_tokens": 3, "caption_size": 5, "caption_lengths": [2]}


def janus():
    """Two layers of a decoder between the smallest vision tower and image tokenizer there can be."""
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    vision |= {"projection_dim": 32, "mlp_ratio": 1.0, "num_image_tokens": 4}
    vq = {"num_embeddings": 16, "embed_dim": 4, "latent_channels": 8, "base_channels": 32}
    vq |= {"channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 2}
    vq |= {"projection_dim": 32, "image_token_embed_dim": 32}
    return transformers.JanusConfig(
        text_config={"model_type": "llama", **_LLAMA}, vision_config=vision, vq_config=vq, image_token_id=2
    )


def emu3():
    """The same for Emu3."""
    vq = {"codebook_size": 16, "embed_dim": 4, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1, 1]}
    vq |= {"hidden_size": 32, "num_res_blocks": 1, "attn_resolutions": []}
    names = {f"<|visual token {index:06d}|>": 90 + index for index in range(16)} | {"<image>": 89}
    return transformers.Emu3Config(text_config=_GQA, vq_config=vq, vocabulary_map=names, image_token_id=89)


# Per name: the config, units of one attention module, units of one MLP module.
ARCHITECTURES = {
    "llama": (lambda: transformers.LlamaConfig(**_LLAMA), 4, 24),
    "llama-biases": (lambda: transformers.LlamaConfig(**_LLAMA, attention_bias=True, mlp_bias=True), 4, 24),
    "llama-gqa-tied": (lambda: transformers.LlamaConfig(**_GQA, tie_word_embeddings=True), 4, 24),
    "llama3-rope": (lambda: transformers.LlamaConfig(**_GQA, rope_parameters=_LLAMA3_ROPE), 4, 24),
    "mistral": (lambda: transformers.MistralConfig(**_GQA, sliding_window=6), 4, 24),
    "qwen2": (lambda: transformers.Qwen2Config(**{**_LLAMA, "num_key_value_heads": 2}), 2, 24),
    "qwen3": (lambda: transformers.Qwen3Config(**_GQA), 4, 24),
    "gemma": (lambda: transformers.GemmaConfig(**_GQA), 4, 24),
    "gemma2": (lambda: transformers.Gemma2Config(**_GQA, sliding_window=6, query_pre_attn_scalar=8), 4, 24),
    "gemma3": (
        lambda: transformers.Gemma3TextConfig(
            **_GQA,
            sliding_window=6,
            query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        4,
        24,
    ),
    "phi3": (lambda: transformers.Phi3Config(**{**_LLAMA, "num_key_value_heads": 2}), 2, 24),
    "phi3-longrope": (lambda: transformers.Phi3Config(**_PHI4_MINI), 2, 24),
    "ministral": (
        lambda: transformers.MinistralConfig(
            **_GQA, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
        ),
        4,
        24,
    ),
    "ministral3": (lambda: transformers.Ministral3Config(**_GQA, rope_parameters=_MINISTRAL3_ROPE), 4, 24),
    "granite": (lambda: transformers.GraniteConfig(**_GQA, **_MULTIPLIERS), 4, 24),
    "olmo2": (lambda: transformers.Olmo2Config(**{**_LLAMA, "num_key_value_heads": 2}), 1, 24),
    "stablelm": (lambda: transformers.StableLmConfig(**_STABLELM), 2, 24),
    "stablelm-parallel": (lambda: transformers.StableLmConfig(**_STABLELM, use_parallel_residual=True), 2, 24),
    "smollm3": (lambda: transformers.SmolLM3Config(**_GQA, no_rope_layers=[1, 0]), 4, 24),
    "gpt-neox-parallel": (lambda: transformers.GPTNeoXConfig(**_NEOX, use_parallel_residual=True), 4, 24),
    "gpt-neox-sequential": (lambda: transformers.GPTNeoXConfig(**_NEOX, use_parallel_residual=False), 4, 24),
    "opt": (lambda: transformers.OPTConfig(**_LLAMA, ffn_dim=24, word_embed_proj_dim=32), 4, 24),
    "janus": (janus, 4, 24),
    "emu3": (emu3, 4, 24),
    "llamagen": (lambda: LlamaGenConfig(**_LLAMAGEN), 4, 24),
    "llamagen-text": (lambda: LlamaGenConfig(**_LLAMAGEN_TEXT), 4, 24),
}


def random_module(config, *, seed=0, attention=None):
    """A float32 model whose weights, biases and norms are all random, so that forgetting any of them shows."""
    module = adapter_for(config).auto_class.from_config(config, dtype=torch.float32, attn_implementation=attention)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * 0.8 / parameter.shape[1] ** 0.5)
            else:
                parameter.add_(noise * 0.3)
    return module.eval().requires_grad_(False)


def tiny_model(name="llama", *, tokenizer=None, seed=0, attention=None, **changes):
    """A tiny random model of one of ARCHITECTURES; `changes` go into its config."""
    config = ARCHITECTURES[name][0]()
    for key, value in changes.items():
        setattr(config, key, value)
    return _model(name, config, tokenizer, seed, attention)


def deep_model(name="llama", *, layers=4, tokenizer=None, attention=None):
    """The same with more layers, whose kinds take turns as those of the tiny model do."""
    config = ARCHITECTURES[name][0]()
    text = text_config(config)
    for key in PER_LAYER:
        if isinstance(values := getattr(text, key, None), list):
            setattr(text, key, (values * layers)[:layers])
    text.num_hidden_layers = layers
    return _model(name, config, tokenizer, 0, attention)


def _model(name, config, tokenizer, seed, attention):
    module = random_module(config, seed=seed, attention=attention)
    if isinstance(config, LlamaGenConfig):
        return LlamaGen(module=module, tokenizer=None, adapter=adapter_for(config), name=f"tiny {name}")
    return Model(module=module, tokenizer=tokenizer, adapter=adapter_for(config), name=f"tiny {name}")


def make_tokenizer(*, framing=False):
    """Byte-level BPE that knows printable ASCII, the line break and a few merges: 104 ids; `framing` adds BOS."""
    characters = ["Ġ", "Ċ", *(chr(code) for code in range(33, 127))]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("an", "d"), ("Ġ", "a")]
    tokens = ["<s>", "</s>", *characters, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if framing:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", padding_side="left"
    )


def random_ids(rows, tokens, *, seed=0):
    # Ids 0 and 1 begin and end a text.
    return torch.randint(2, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def with_recipe(plan, **changes):
    """The plan as if its recipe had been another in what does not choose units."""
    return replace(plan, recipe=plan.recipe.replace(**changes))


def random_scores(model, *, seed=0, scorer="newton"):
    """Standard normal scores for every channel of every module of a model, under the name of a scorer."""
    rng = np.random.default_rng(seed)
    modules = {}
    for block in model.blocks:
        channels = rng.standard_normal(block.units * block.width)
        units = channels.reshape(block.units, block.width).mean(1)
        modules[block.key] = ModuleScores(units, channels, block.cost, block.remainder)
    return ScoreTable(modules, scorer, 0.5, model.name, model.fingerprint(), model.parameters, model.beside)
