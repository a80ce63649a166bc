"""Fingerprints tell apart what predicts differently, and nothing else."""

import pytest
import torch
from architectures import ARCHITECTURES, make_tokenizer, tiny_model

from numprune import InputError, Recipe, calibrate, load, score


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_keeps_its_fingerprint_on_disk_and_in_half_precision(name, tmp_path):
    model = tiny_model(name, tokenizer=make_tokenizer())
    model.save(tmp_path / "model")
    for dtype in ("float32", "bfloat16"):
        assert load(tmp_path / "model", device="cpu", dtype=dtype).fingerprint() == model.fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
    ],
)
def test_configs_that_predict_differently_have_other_fingerprints(changes):
    model = tiny_model("llama")
    before = model.fingerprint()
    for name, value in changes.items():
        setattr(model.config, name, value)
    assert model.fingerprint() != before


def test_what_changes_no_logit_changes_no_fingerprint():
    model = tiny_model("llama")
    before = model.fingerprint()
    for name, value in {
        "use_cache": False,
        "eos_token_id": [1, 2],
        "attention_dropout": 0.1,
        "architectures": ["Other"],
        "transformers_version": "4.1",
        "initializer_range": 0.5,
    }.items():
        setattr(model.config, name, value)
    assert model.fingerprint() == before


def test_every_single_weight_counts():
    model = tiny_model("llama")
    seen = {model.fingerprint()}
    weight = model.blocks[1].last.weight
    for place in (0, 1, 7, weight.numel() - 1):
        with torch.no_grad():
            weight.view(-1)[place] += 1.0
        seen.add(model.fingerprint())
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    seen.add(model.fingerprint())
    assert len(seen) == 6


def test_statistics_of_a_model_with_another_rotary_base_are_refused():
    model, other = tiny_model("llama"), tiny_model("llama")
    other.config.rope_parameters = {"rope_type": "default", "rope_theta": 500000.0}
    rows = torch.randint(90, (4, 16), generator=torch.Generator().manual_seed(0))
    stats = calibrate(model, rows, samples=4, sequence_length=16)
    with pytest.raises(InputError, match="statistics belong to another model"):
        score(other, stats)


def test_recipes_of_earlier_versions_are_adopted():
    model = tiny_model("llama")
    old = Recipe(model="elsewhere", fingerprint=model.earlier_fingerprint())
    assert model.adopt(old) == old.replace(model=model.name, fingerprint=model.fingerprint())
    with pytest.raises(InputError, match="The recipe was made for elsewhere"):
        model.adopt(old.replace(fingerprint="0" * 16))
