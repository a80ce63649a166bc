"""Narrowed residual streams, against the dense model turned by hand and against masks."""

import pytest
import torch
from architectures import ARCHITECTURES, make_tokenizer, random_ids, random_scores, tiny_model
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from numprune import LoadError, Recipe, Sampling, UnsupportedArchitecture, allocate, calibrate, load, prune
from numprune.generation.text import sample_tokens
from numprune.slicing.stream import (
    SlicedLayer,
    check_sliceable,
    narrow_residual,
    narrowed_parameters,
)

HIDDEN = 32
SLICEABLE = ("llama", "llama-biases", "llama-gqa-tied", "llama3-rope", "mistral", "qwen2", "qwen3", "smollm3")
EACH = pytest.mark.parametrize("name", SLICEABLE)


def random_bases(layers=2, width=HIDDEN, seed=0):
    """Orthonormal columns that have nothing to do with each other, for every place of the stream."""
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.randn(HIDDEN, HIDDEN, generator=generator, dtype=torch.float64) for _ in range(1 + 2 * layers))
    return [torch.linalg.qr(draw).Q[:, :width] for draw in draws]


def narrowed(model, bases):
    return model.around(narrow_residual(model.module, model.adapter, bases))


def logits(model, ids):
    with torch.no_grad():
        return model.module(input_ids=ids, use_cache=False).logits


@EACH
def test_turning_the_stream_changes_nothing(name):
    model, ids = tiny_model(name), random_ids(3, 20, seed=4)
    dense = logits(model, ids)
    torch.testing.assert_close(logits(narrowed(model, random_bases()), ids), dense, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["llama-biases", "llama-gqa-tied", "qwen3"])
def test_turning_the_stream_changes_nothing_to_the_last_bits_of_float64(name, monkeypatch):
    def exact(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)

    # transformers takes its norms in float32 whatever the model's type.
    monkeypatch.setattr(LlamaRMSNorm, "forward", exact)
    monkeypatch.setattr(Qwen3RMSNorm, "forward", exact)
    model, ids = tiny_model(name), random_ids(3, 20, seed=4)
    model.module.double()
    torch.testing.assert_close(logits(narrowed(model, random_bases()), ids), logits(model, ids), rtol=1e-10, atol=1e-11)


@EACH
def test_a_narrow_stream_is_a_turned_one_with_the_other_directions_at_zero(name):
    model, ids, width = tiny_model(name), random_ids(3, 20, seed=4), 20
    bases = random_bases()
    masked = narrowed(model, bases)

    def mask(_, args):
        return (args[0] * (torch.arange(HIDDEN) < width),)

    for layer in masked.module.model.layers:
        for reader in (layer, layer.mlp_shortcut, layer.post_attention_layernorm):
            reader.register_forward_pre_hook(mask)
    masked.module.model.norm.register_forward_pre_hook(mask)
    sliced = narrowed(model, [basis[:, :width] for basis in bases])
    torch.testing.assert_close(logits(sliced, ids), logits(masked, ids), rtol=1e-4, atol=2e-5)
    assert sliced.adapter.residual_width(sliced.module) == width
    assert model.adapter.residual_width(model.module) is None


@EACH
@pytest.mark.parametrize("width", [1, 13, 32])
def test_parameters_are_counted_to_the_last(name, width):
    model = tiny_model(name)
    sliced = narrowed(model, random_bases(width=width))
    assert sliced.parameters == narrowed_parameters(model.module, model.adapter, width)


def test_the_dense_model_is_only_read():
    model = tiny_model("llama-gqa-tied")
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    narrowed(model, random_bases(width=9))
    after = model.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert model.config.tie_word_embeddings
    assert not any(isinstance(layer, SlicedLayer) for layer in model.module.model.layers)


@EACH
def test_a_cache_changes_nothing(name):
    model = tiny_model(name, tokenizer=make_tokenizer())
    sliced = narrowed(model, random_bases(width=20))
    ids = random_ids(3, 12, seed=7)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    ids = ids.masked_fill(mask == 0, 1)
    runs = [
        torch.stack(list(sample_tokens(sliced, ids, mask, Sampling(10, temperature=0), use_cache=use)), dim=1)
        for use in (False, True)
    ]
    assert torch.equal(*runs)


@EACH
def test_a_saved_model_opens_again(name, tmp_path):
    model = tiny_model(name, tokenizer=make_tokenizer())
    sliced, ids = narrowed(model, random_bases(width=13)), random_ids(2, 15)
    sliced.save(tmp_path / "sliced")
    opened = load(tmp_path / "sliced", device="cpu")
    assert torch.equal(logits(opened, ids), logits(sliced, ids))
    assert opened.parameters == sliced.parameters
    assert opened.config.tie_word_embeddings is False


def test_a_narrowed_model_can_lose_units_too(tmp_path):
    sliced = narrowed(tiny_model("llama", tokenizer=make_tokenizer()), random_bases(width=20))
    rows, ids = random_ids(4, 16, seed=3), random_ids(2, 15)
    stats = calibrate(sliced, rows, samples=4, sequence_length=16)
    pruned = prune(sliced, allocate(random_scores(sliced), Recipe(ratio=0.5)), stats)
    assert pruned.parameters == pruned.report.parameters_after < sliced.parameters
    pruned.save(tmp_path / "both")
    assert torch.equal(logits(load(tmp_path / "both", device="cpu"), ids), logits(pruned, ids))


def test_a_damaged_width_is_refused(tmp_path):
    sliced = narrowed(tiny_model("llama", tokenizer=make_tokenizer()), random_bases(width=20))
    sliced.save(tmp_path / "sliced")
    marker = tmp_path / "sliced" / "numprune.json"
    text = marker.read_text()
    for wrong, message in (("21", "do not match"), ('"wide"', "damaged")):
        marker.write_text(text.replace('"residual_width": 20', f'"residual_width": {wrong}'))
        with pytest.raises(LoadError, match=message):
            load(tmp_path / "sliced", device="cpu")


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in SLICEABLE])
def test_other_architectures_are_refused(name):
    model = tiny_model(name)
    with pytest.raises(UnsupportedArchitecture, match="use another method"):
        check_sliceable(model.adapter, model.config, model.name)
