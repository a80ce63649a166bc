"""Text-conditional LlamaGen against the published computation: captions as a padded prefix, projected features."""

import json

import pytest
import torch
import torch.nn.functional as F
from test_llamagen import CODES, GRID, VQ, opened, published_decoder, published_state, published_vq, write
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from numprune import InputError, LoadError, Recipe, allocate, calibrate, load, perplexity, prune, score
from numprune.llamagen import Captions, encode_captions
from numprune.llamagen import captions as module

TOKENS, SIZE, HIDDEN = 5, 6, 64
TEXTS = ["a red box", "a dog", "rain over a green hill"]
LENGTHS = [3, 2, 5]


def text_state(seed=0):
    """A published text-conditional decoder's tensors."""
    generator = torch.Generator().manual_seed(seed + 100)
    state = published_state(seed=seed)
    del state["cls_embedding.embedding_table.weight"]
    state["cls_embedding.cap_proj.fc1.weight"] = torch.randn(HIDDEN, SIZE, generator=generator)
    state["cls_embedding.cap_proj.fc2.weight"] = torch.randn(HIDDEN, HIDDEN, generator=generator) / 2
    state["cls_embedding.uncond_embedding"] = torch.randn(TOKENS, SIZE, generator=generator)
    return state


def features(n=3, seed=5):
    return torch.randn(n, TOKENS, SIZE, generator=torch.Generator().manual_seed(seed))


CAPTIONS = Captions(TEXTS, features(), LENGTHS)


def published_prefix(state, which, null=False):
    """Embedded captions (batch, tokens, hidden) and which of their tokens are real, moved to the right as published."""
    rows, valid = torch.zeros(len(which), TOKENS, SIZE), torch.zeros(len(which), TOKENS)
    for row, caption in enumerate(which):
        length = LENGTHS[caption]
        rows[row, TOKENS - length :] = CAPTIONS.features[caption, :length]
        valid[row, TOKENS - length :] = 1
    if null:
        rows = state["cls_embedding.uncond_embedding"].expand_as(rows)
    inner = F.gelu(rows @ state["cls_embedding.cap_proj.fc1.weight"].T, approximate="tanh")
    return inner @ state["cls_embedding.cap_proj.fc2.weight"].T, valid


@pytest.fixture
def state():
    return text_state()


@pytest.fixture
def file(tmp_path, state):
    write(tmp_path / "vq_ds16_t2i.pt", {"model": published_vq()})
    return write(tmp_path / "t2i_XL_stage1_256.pt", {"model": state})


@pytest.fixture
def model(file):
    return opened(file, captions=CAPTIONS, vq=file.parent / "vq_ds16_t2i.pt")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_the_published_ones(model, state, attention):
    model.module.set_attn_implementation(attention)
    which = torch.tensor([0, 1, 2, 1])
    codes = torch.randint(0, CODES, (4, GRID**2), generator=torch.Generator().manual_seed(1))
    expected = published_decoder(state, *_order(published_prefix(state, which.tolist()), codes), heads=4)
    found = model.forward(which, codes)
    assert found.shape == (4, 1 + GRID**2, CODES)
    torch.testing.assert_close(found, expected[:, TOKENS - 1 :], rtol=1e-4, atol=1e-4)
    assert float((found[1] - found[3]).abs().max()) > 0.1


def _order(prefix_and_valid, codes):
    prefix, valid = prefix_and_valid
    return prefix, codes, valid


def test_guidance_and_sampling_are_the_published_ones(model, state):
    which, scale, seed = [2, 0], 2.5, 9
    uniform = [torch.rand(GRID**2, generator=torch.Generator().manual_seed(seed + row)) for row in range(2)]
    codes = torch.empty(2, 0, dtype=torch.long)
    for step in range(GRID**2):
        halves = [
            published_decoder(state, *_order(published_prefix(state, which, null), codes), heads=4)[:, -1]
            for null in (False, True)
        ]
        shares = (halves[1] + (halves[0] - halves[1]) * scale).softmax(-1)
        drawn = [int((share.cumsum(0) <= row[step]).sum()) for share, row in zip(shares, uniform, strict=True)]
        codes = torch.cat([codes, torch.tensor(drawn)[:, None]], dim=1)
    for use_cache in (True, False):
        found = model.generate(which, cfg_scale=scale, top_k=0, seed=seed, use_cache=use_cache)
        assert torch.equal(found, codes)


def test_padding_adds_nothing_to_the_statistics(model):
    """A caption's padding is zero in every layer, so the Gram matrices are those of its own tokens."""
    seen = []
    hooks = [
        block.last.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, : TOKENS - 2]))
        for block in model.blocks
    ]
    model.forward(torch.tensor([1]), torch.zeros(1, 2, dtype=torch.long))
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(model.blocks)
    assert all(bool((each == 0).all()) for each in seen)


def test_the_whole_road(model, tmp_path):
    stats = calibrate(model, "self", samples=6)
    assert stats.sequence_length == TOKENS + GRID**2
    pruned = prune(model, allocate(score(model, stats), Recipe(ratio=0.3)), stats)
    assert pruned.parameters < model.parameters
    pruned.save(tmp_path / "saved")
    again = load(tmp_path / "saved", device="cpu")
    assert again.class_names == TEXTS
    codes = pruned.generate([0, 1, 2], cfg_scale=3.0)
    assert torch.equal(again.generate([0, 1, 2], cfg_scale=3.0), codes)
    assert again.decode(codes).shape == (3, 3, 16 * GRID, 16 * GRID)


def test_perplexity_counts_codes_only(model):
    rows = model.rows(torch.tensor([0, 1]), torch.ones(2, GRID**2, dtype=torch.long))
    found = perplexity(model, rows, sequence_length=rows.shape[1])
    assert found.tokens == 2 * GRID**2
    logits = model.forward(torch.tensor([0, 1]), torch.ones(2, GRID**2, dtype=torch.long))[:, :-1]
    assert found.nll == pytest.approx(float(-logits.log_softmax(-1)[..., 1].mean()), rel=1e-5)


def test_other_captions_take_the_place_of_the_first(model, file):
    others = Captions(["x"], features(1, seed=8), [4])
    found = model.with_captions(others)
    expected = opened(file, captions=others)
    assert found.class_names == ["x"]
    assert torch.equal(found.generate([0], cfg_scale=2.0), expected.generate([0], cfg_scale=2.0))
    assert model.class_names == TEXTS
    assert found.module.lm_head.weight.data_ptr() == model.module.lm_head.weight.data_ptr()


def test_captions_lie_beside_the_file(file, monkeypatch):
    CAPTIONS.save(file.parent / "captions.safetensors")
    monkeypatch.setattr("numprune.llamagen.checkpoint.HEADS", {(2, HIDDEN): 4})
    monkeypatch.setattr("numprune.llamagen.checkpoint.PIXELS_PER_CODE", 256 // GRID)
    model = load(file, device="cpu")
    assert model.class_names == TEXTS
    assert model.vq is not None
    assert model.notes == ["Captions: features in captions.safetensors."]


def test_a_saved_file_reads_as_it_was(tmp_path):
    CAPTIONS.save(tmp_path / "a.safetensors")
    read = Captions.read(tmp_path / "a.safetensors")
    assert (read.texts, read.lengths) == (TEXTS, LENGTHS)
    assert torch.equal(read.features, CAPTIONS.features)


@pytest.fixture
def encoder(tmp_path, tokenizer: PreTrainedTokenizerFast):
    """A tiny random T5 encoder on disk."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=120, d_model=SIZE, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(config).eval().save_pretrained(tmp_path / "t5")
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(tmp_path / "t5")
    return tmp_path / "t5"


def test_texts_are_encoded_where_the_encoder_is_at_hand(encoder, file, monkeypatch):
    found = encode_captions(["A Dog ", "the rain"], TOKENS, encoder=str(encoder), device="cpu")
    tokenizer, t5 = AutoTokenizer.from_pretrained(encoder), T5EncoderModel.from_pretrained(encoder)
    for row, text in enumerate(("a dog", "the rain")):
        ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :TOKENS]
        assert found.lengths[row] == ids.shape[1]
        expected = t5(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(found.features[row, : ids.shape[1]], expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(module, "encode_captions", lambda texts, tokens, device: found)
    (file.parent / "captions.txt").write_text("A Dog\n\nthe rain\n")
    model = opened(file, captions=file.parent / "captions.txt")
    assert model.notes == [f"Captions: encoded by {encoder}."]
    assert model.classes == 2


def test_an_encoder_that_is_not_to_be_had_says_what_to_do(tmp_path):
    with pytest.raises(LoadError, match="give a file of features"):
        encode_captions(["a"], encoder=str(tmp_path / "nothing"), device="cpu")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Captions(["a"], features(2), [1, 1]), "There are 1 captions"),
        (lambda: Captions(["a"], features(1), [TOKENS + 1]), "each must be 1 to 5"),
        (lambda: Captions(["a"], features(1) / 0, [1]), "not finite"),
        (lambda: encode_captions(["a", " "]), "A caption is empty"),
    ],
)
def test_captions_that_do_not_fit_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_a_decoder_and_captions_must_go_together(file, model, tmp_path):
    with pytest.raises(InputError, match=r"captions.safetensors or captions.txt beside"):
        opened(file)
    with pytest.raises(InputError, match="the decoder reads 5 of 6"):
        opened(file, captions=Captions(["a"], torch.ones(1, 4, SIZE), [2]))
    classes = opened(write(tmp_path / "c2i.pt", published_state()))
    with pytest.raises(InputError, match="reads no captions"):
        classes.with_captions(CAPTIONS)
    with pytest.raises(InputError, match="reads no captions"):
        opened(tmp_path / "c2i.pt", captions=CAPTIONS)
    (tmp_path / "bad.safetensors").write_text(json.dumps(VQ))
    with pytest.raises(LoadError, match="holds no caption features"):
        opened(file, captions=tmp_path / "bad.safetensors")
