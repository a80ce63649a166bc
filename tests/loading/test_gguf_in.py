"""GGUF files opened: what our own export wrote, and what the files of others say."""

import numpy as np
import pytest
import torch
from architectures import make_tokenizer, random_ids, random_scores, tiny_model
from tokenizers.processors import TemplateProcessing

from numprune import (
    LoadError,
    Recipe,
    UnsupportedArchitecture,
    allocate,
    calibrate,
    export,
    generate,
    load,
    perplexity,
    prune,
)

gguf = pytest.importorskip("gguf")


def logits(model, ids):
    return model.module(ids).logits


def exported(model, path, dtype="f32"):
    export(model, path, format="gguf", options={"dtype": dtype})
    return load(path, device="cpu")


@pytest.fixture(scope="module")
def stories():
    return load("tiny-stories", device="cpu")


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_the_embedded_model_comes_back_from_gguf(stories, tmp_path, dtype):
    model = exported(stories, tmp_path / "stories.gguf", dtype)
    ids = torch.randint(2, 2000, (2, 40), generator=torch.Generator().manual_seed(0))
    exact = dtype in ("f32", "f16")
    difference = float((logits(model, ids) - logits(stories, ids)).abs().max())
    assert difference == 0 if exact else 0 < difference < 1
    assert (model.fingerprint() == stories.fingerprint()) == (dtype != "q8_0")
    text = "Once upon a time, there were 12 cats."
    assert model.tokenizer(text)["input_ids"] == stories.tokenizer(text)["input_ids"]
    assert model.tokenizer.eos_token == stories.tokenizer.eos_token
    assert len(model.tokenizer) == len(stories.tokenizer)
    assert dtype.upper() in model.notes[0]
    assert ("dequantised" in model.notes[0]) == (dtype == "q8_0")
    stored = {"f32": None, "bf16": torch.bfloat16}.get(dtype, torch.float16)
    assert model.stored_dtype == stored
    model.save(tmp_path / "saved")
    again = load(tmp_path / "saved", device="cpu")
    assert perplexity(again, [text]) == pytest.approx(perplexity(model, [text]), rel=0.01)
    assert generate(again, "Once", max_new_tokens=8) == generate(model, "Once", max_new_tokens=8)


@pytest.mark.parametrize(
    "name",
    ["llama", "llama-biases", "llama-gqa-tied", "llama3-rope", "mistral", "qwen2", "qwen3", "phi3"],
)
def test_every_architecture_we_write_comes_back_with_its_logits(tmp_path, name):
    model = tiny_model(name, tokenizer=make_tokenizer())
    opened = exported(model, tmp_path / "a.gguf")
    ids = random_ids(2, 6)  # within the sliding window
    torch.testing.assert_close(logits(opened, ids), logits(model, ids), rtol=1e-4, atol=1e-4)


def test_linear_scaling_comes_back(tmp_path):
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    model = tiny_model("llama-gqa-tied", tokenizer=make_tokenizer(), rope_parameters=rope)
    opened = exported(model, tmp_path / "a.gguf")
    assert opened.config.rope_parameters["factor"] == 4.0
    torch.testing.assert_close(logits(opened, random_ids(2, 40)), logits(model, random_ids(2, 40)))


def test_yarn_is_refused_by_name(tmp_path):
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    model = tiny_model("llama-gqa-tied", tokenizer=make_tokenizer(), rope_parameters=rope)
    with pytest.raises(UnsupportedArchitecture, match="rotary embedding of type yarn"):
        exported(model, tmp_path / "a.gguf")


def test_beginning_template_and_end_tokens_come_along(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.chat_template = "{{ messages }}"
    model = tiny_model("llama-gqa-tied", tokenizer=tokenizer)
    opened = exported(model, tmp_path / "a.gguf")
    assert opened.tokenizer("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]
    assert opened.tokenizer.chat_template == "{{ messages }}"
    opened.save(tmp_path / "out")
    again = load(tmp_path / "out", device="cpu").tokenizer
    assert again("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]
    assert again.chat_template == "{{ messages }}"


def uneven(model):
    stats = calibrate(model, random_ids(4, 16), samples=4, sequence_length=16)
    plan = allocate(random_scores(model), Recipe(ratio=0.0, prune={"1.mlp": (0, 1, 2), "0.attention": (1,)}))
    return prune(model, plan, stats)


def test_a_model_whose_layers_differ_is_refused_with_what_to_give(tmp_path):
    pruned = uneven(tiny_model("llama-gqa-tied", tokenizer=make_tokenizer()))
    with pytest.raises(
        UnsupportedArchitecture, match=r"layers of different sizes .*'deci'.* the folder it was exported"
    ):
        exported(pruned, tmp_path / "a.gguf")


def described(path, architecture, **keys):
    """A GGUF file with keys and no tensor."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "keys", "says", "error"),
    [
        ("mamba", {}, "GGUF architecture 'mamba', which cannot be opened; those that can are llama", None),
        ("llama", {"expert_count": 8}, r"mixture of experts \(GGUF architecture 'llama'\)", None),
        ("clip", {}, "not a language model", LoadError),
        ("llama", {"type": "adapter"}, "of type adapter .* not a language model", LoadError),
        ("llama", {}, "without a tokenizer", LoadError),
    ],
)
def test_files_that_are_no_model_of_ours_are_named(tmp_path, architecture, keys, says, error):
    with pytest.raises(error or UnsupportedArchitecture, match=says):
        load(described(tmp_path / "a.gguf", architecture, **keys), device="cpu")


def test_damaged_files_and_parts_of_split_ones_are_named(tmp_path, stories):
    exported(stories, tmp_path / "a.gguf")
    whole = (tmp_path / "a.gguf").read_bytes()
    for size in (8, 100, 5000, len(whole) - 4096):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(LoadError, match=r"cut.gguf is a damaged GGUF file or one cut short"):
            load(tmp_path / "cut.gguf", device="cpu")
    (tmp_path / "a-00001-of-00002.gguf").write_bytes(whole)
    with pytest.raises(LoadError, match="one part of a split file"):
        load(tmp_path / "a-00001-of-00002.gguf", device="cpu")
    (tmp_path / "named.gguf").write_text("not one")
    with pytest.raises(LoadError, match="is no GGUF file, whatever its name"):
        load(tmp_path / "named.gguf", device="cpu")


def test_what_is_in_a_file_decides_not_its_name(tmp_path, stories):
    exported(stories, tmp_path / "a.gguf")
    (tmp_path / "a.gguf").rename(tmp_path / "weights.bin")
    assert load(tmp_path / "weights.bin", device="cpu").fingerprint() == stories.fingerprint()


def test_what_lies_beside_a_file_is_not_taken_for_it(tmp_path, stories):
    other = tiny_model("qwen2", tokenizer=make_tokenizer())
    other.module.save_pretrained(tmp_path)
    other.tokenizer.chat_template = "other"
    other.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    model = exported(stories, tmp_path / "a.gguf")
    assert model.fingerprint() == stories.fingerprint()
    assert model.tokenizer.chat_template is None
    assert model.tokenizer("the cat")["input_ids"] == stories.tokenizer("the cat")["input_ids"]


def test_a_file_of_the_hub_is_fetched_and_opened(tmp_path, stories, monkeypatch):
    exported(stories, tmp_path / "a.gguf")
    asked = []

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr("numprune.loading.sources.hf_hub_download", download)
    model = load("ada/stories-GGUF:a.gguf", device="cpu", revision="v1")
    assert asked == [("ada/stories-GGUF", "a.gguf", "v1")]
    assert model.fingerprint() == stories.fingerprint()
    assert model.name == "ada/stories-GGUF:a.gguf"
