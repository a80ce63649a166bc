"""Tiny random twins of public models, with the keys their published config.json has."""

import copy
import json

import pytest
import torch
from architectures import make_tokenizer, random_ids, random_module
from transformers import AutoConfig, AutoModelForCausalLM

from numprune import Recipe, UnsupportedArchitecture, allocate, calibrate, export, load, prune, score
from numprune.generation.text import end_tokens

_BASE = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
    "use_cache": True,
    "vocab_size": 112,
}
TWINS = {
    "SmolLM2-135M": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "is_llama_config": True,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "Llama-3.2-1B": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "eos_token_id": [1, 2, 3],
        "head_dim": 8,
        "mlp_bias": False,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 16,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    "Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 16,
        "max_window_layers": 2,
        "model_type": "qwen3",
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": False,
        "use_sliding_window": False,
    },
    "phi-4": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "embd_pdrop": 0.0,
        "model_type": "phi3",
        "original_max_position_embeddings": 64,
        "pad_token_id": 1,
        "resid_pdrop": 0.0,
        "rope_scaling": None,
        "rope_theta": 250000,
        "sliding_window": None,
    },
    "Phi-4-mini-instruct": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "auto_map": {
            "AutoConfig": "configuration_phi3.Phi3Config",
            "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
            "AutoTokenizer": "Xenova/gpt-4o",
        },
        "embd_pdrop": 0.0,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "mlp_bias": False,
        "model_type": "phi3",
        "original_max_position_embeddings": 16,
        "pad_token_id": 1,
        "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0,
        "rope_scaling": {"long_factor": [1, 2.5, 6], "short_factor": [1.0, 1.2, 1.5], "type": "longrope"},
        "sliding_window": 262144,
        "tie_word_embeddings": True,
    },
    "gemma-3-270m": {
        "_sliding_window_pattern": 6,
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 16,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 6,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": False,
    },
    "Ministral-8B-Instruct-2410": {
        "architectures": ["MistralForCausalLM"],
        "head_dim": 16,
        "layer_types": ["full_attention", "sliding_attention"],
        "model_type": "mistral",
        "rope_theta": 100000000.0,
        "sliding_window": 6,
    },
    "OLMo-2-0425-1B": {
        "architectures": ["Olmo2ForCausalLM"],
        "attention_bias": False,
        "model_type": "olmo2",
        "num_key_value_heads": 4,
        "pad_token_id": 2,
        "rope_scaling": None,
        "rope_theta": 500000,
        "torch_dtype": "float32",
    },
    "granite-3.3-2b-instruct": {
        "architectures": ["GraniteForCausalLM"],
        "attention_bias": False,
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "mlp_bias": False,
        "model_type": "granite",
        "pad_token_id": 1,
        "residual_multiplier": 0.22,
        "rope_scaling": None,
        "rope_theta": 10000000.0,
        "tie_word_embeddings": True,
    },
    "stablelm-2-1_6b": {
        "architectures": ["StableLmForCausalLM"],
        "hidden_dropout": 0.0,
        "layer_norm_eps": 1e-05,
        "model_type": "stablelm",
        "partial_rotary_factor": 0.25,
        "num_key_value_heads": 4,
        "qk_layernorm": False,
        "rope_scaling": None,
        "use_parallel_residual": False,
        "use_qkv_bias": True,
        "hidden_size": 64,
    },
}


def written(name, folder):
    """A checkpoint of a twin with its published config.json, and the module whose weights it holds."""
    given = {**_BASE, **TWINS[name]}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(given))
    plain = {key: value for key, value in given.items() if key != "auto_map"}
    (folder / "plain").mkdir()
    (folder / "plain/config.json").write_text(json.dumps(plain))
    module = random_module(AutoConfig.from_pretrained(folder / "plain"))
    dtype = getattr(torch, given["torch_dtype"])
    for parameter in module.parameters():
        parameter.copy_(parameter.to(dtype))
    copy.deepcopy(module).to(dtype).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(given))
    make_tokenizer().save_pretrained(folder)
    return module


def logits(module):
    with torch.no_grad():
        return module(random_ids(2, 20, seed=4), use_cache=False).logits


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_opens_is_pruned_saved_and_exported(tmp_path, name):
    module = written(name, tmp_path / "in")
    model = load(tmp_path / "in", device="cpu")
    torch.testing.assert_close(logits(model.module), logits(module))
    eos = TWINS[name].get("eos_token_id", 1)
    assert end_tokens(model) == set(eos if isinstance(eos, list) else [eos])
    stats = calibrate(model, "self", samples=4, sequence_length=16)
    recipe = Recipe(ratio=0.3, compensation="network")
    pruned = prune(model, allocate(score(model, stats), recipe), stats)
    assert pruned.parameters < model.parameters
    pruned.save(tmp_path / "out")
    again = load(tmp_path / "out", device="cpu")
    assert again.units() == pruned.units()
    # The weights were rounded to the checkpoint's own type.
    stored = torch.float32 if name.startswith("OLMo") else torch.bfloat16
    assert {p.dtype for p in load(tmp_path / "out", device="cpu", dtype="checkpoint").module.parameters()} == {stored}
    expected = logits(pruned.module)
    assert float((logits(again.module) - expected).abs().max()) < 0.1 * float(expected.abs().max())
    export(again, tmp_path / "hf")
    foreign = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True, dtype=torch.float32)
    torch.testing.assert_close(logits(foreign), logits(again.module))
    for folder in ("out", "hf"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["rope_theta"] == {**_BASE, **TWINS[name]}["rope_theta"]
        assert "Xenova" not in json.dumps(config)
        assert not any("configuration_phi3" in str(value) for value in config.get("auto_map", {}).values())


def test_exaone_4_is_refused_by_name_before_its_weights_are_read(tmp_path):
    config = {**_BASE, "architectures": ["Exaone4ForCausalLM"], "model_type": "exaone4"}
    config |= {"sliding_window": 6, "sliding_window_pattern": "LLLG"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"reading this would fail")
    with pytest.raises(UnsupportedArchitecture, match="Exaone4ForCausalLM"):
        load(tmp_path, device="cpu")
