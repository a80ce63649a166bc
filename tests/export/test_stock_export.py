"""Equal counts in every layer open as a stock class without custom code, or are refused."""

import json

import pytest
import torch
from architectures import deep_model, make_tokenizer, random_ids, random_scores, tiny_model, with_recipe

from numprune import InputError, Recipe, allocate, calibrate, export, load, prune
from numprune.export import formats_for

# Classes a quarter fewer channels, half the heads, and one head fewer (of 3, 5 or 7 in GQA the hidden size is no
# multiple) open in; None where no class is the model.
CLASSES = {
    "llama": ("LlamaForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"),
    "llama-biases": ("LlamaForCausalLM", "LlamaForCausalLM", None),
    "llama-gqa-tied": ("LlamaForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"),
    "llama3-rope": ("LlamaForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"),
    "mistral": ("MistralForCausalLM",) * 3,
    "qwen2": ("Qwen2ForCausalLM",) * 3,
    "qwen3": ("Qwen3ForCausalLM",) * 3,
    "gemma": ("GemmaForCausalLM",) * 3,
    "gemma2": ("Gemma2ForCausalLM", "Gemma2ForCausalLM", None),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3ForCausalLM", None),
    "phi3": ("Phi3ForCausalLM",) * 3,
    "smollm3": ("SmolLM3ForCausalLM",) * 3,
    "gpt-neox-parallel": ("GPTNeoXForCausalLM", None, None),
    "gpt-neox-sequential": ("GPTNeoXForCausalLM", None, None),
    "opt": ("OPTForCausalLM", None, None),
    "janus": ("JanusForConditionalGeneration", "JanusForConditionalGeneration", None),
    "emu3": ("Emu3ForConditionalGeneration",) * 3,
}
CASES = [(name, cut, classes[cut]) for name, classes in CLASSES.items() for cut in range(3)]


def pruned(name, cut, compensation="none"):
    model = tiny_model(name, tokenizer=make_tokenizer())
    heads = next(block.units for block in model.blocks)
    # Other units in each layer, of the same number.
    units = ({"mlp": 6}, {"attention": heads // 2, "mlp": 3}, {"attention": 1})[cut]
    prunes = {f"{layer}.{kind}": range(layer, layer + count) for kind, count in units.items() for layer in range(2)}
    stats = calibrate(model, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    plan = allocate(random_scores(model), Recipe(ratio=0.0, prune=prunes))
    return prune(model, with_recipe(plan, compensation=compensation), stats)


@torch.no_grad()
def logits(module):
    return module(input_ids=random_ids(2, 12, seed=7), use_cache=False).logits


@pytest.mark.parametrize(("name", "cut", "expected"), CASES)
def test_opens_as_a_stock_class_or_is_refused(name, cut, expected, tmp_path):
    model = pruned(name, cut)
    if expected is None:
        with pytest.raises(InputError, match=f"{type(model.config).__name__} cannot express, so 'stock'"):
            export(model, tmp_path / "stock", format="stock")
        assert not list(tmp_path.iterdir())
        return
    written = export(model, tmp_path / "stock", format="stock")
    assert written.notes == [f"It is a {expected} with no custom code."]
    assert not list(written.path.glob("*.py"))
    assert "auto_map" not in json.loads((written.path / "config.json").read_text())
    opened = model.adapter.auto_class.from_pretrained(written.path, attn_implementation="eager")
    assert type(opened).__name__ == expected
    assert type(opened).__module__.startswith("transformers.models.")
    model.module.set_attn_implementation("eager")
    assert torch.equal(logits(opened), logits(model.module))
    ids = random_ids(1, 6, seed=8)
    tokens = [each.generate(ids, max_new_tokens=8, do_sample=False) for each in (opened, model.module)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize(("name", "cut"), [("llama", 1), ("llama", 2), ("qwen2", 2), ("gpt-neox-parallel", 0)])
def test_opens_here_with_its_history(name, cut, tmp_path):
    model = pruned(name, cut)
    folder = export(model, tmp_path / "stock", format="stock").path
    opened = load(folder, device="cpu")
    assert opened.units() == model.units()
    assert opened.recipe == model.recipe
    assert torch.equal(logits(opened.module), logits(model.module))
    half = load(folder, device="cpu", dtype="bfloat16")
    again = export(half, tmp_path / "half", format="stock").path
    assert torch.equal(logits(load(again, device="cpu", dtype="checkpoint").module), logits(half.module))


@pytest.mark.parametrize(
    ("name", "cut", "zeros"), [("llama", 0, 4), ("llama", 1, 10), ("smollm3", 2, 6), ("qwen3", 2, 6), ("opt", 0, 0)]
)
def test_biases_of_compensation_are_kept_and_the_rest_of_their_kind_zeros(name, cut, zeros, tmp_path):
    model = pruned(name, cut, "bias")
    written = export(model, tmp_path / "stock", format="stock")
    assert [f"{zeros} biases" in note for note in written.notes[1:]] == ([True] if zeros else [])
    opened = model.adapter.auto_class.from_pretrained(written.path)
    torch.testing.assert_close(logits(opened), logits(model.module), rtol=0, atol=1e-6)


def test_biases_no_class_has_are_refused():
    assert "cannot express" in formats_for(pruned("mistral", 0, "bias"))["stock"]


def test_unequal_counts_are_refused_with_what_can_carry_them(tmp_path):
    model = tiny_model("llama")
    stats = calibrate(model, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    plan = allocate(random_scores(model), Recipe(ratio=0.0, prune={"0.mlp": (1, 2)}))
    with pytest.raises(InputError, match=r"22 to 24 MLP channels, not the same .* --uniform .*; use .*transformers"):
        export(prune(model, plan, stats), tmp_path / "stock", format="stock")
    assert not list(tmp_path.iterdir())


def test_no_heads_at_all_are_refused():
    model = tiny_model("llama")
    stats = calibrate(model, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    recipe = Recipe(ratio=0.0, ratios={"0.attention": 0.99, "1.attention": 0.99}, allow_empty=True)
    bare = prune(model, allocate(random_scores(model), recipe), stats)
    assert formats_for(bare) | {"stock": "keeps no KV heads at all", "transformers": None} == formats_for(bare)


def test_an_image_model_of_our_own_class_is_refused():
    assert formats_for(tiny_model("llamagen"))["stock"] == "is a LlamaGenForImages, which transformers does not have"


def test_a_uniform_recipe_makes_what_this_format_takes(tmp_path):
    model = tiny_model("llama3-rope", tokenizer=make_tokenizer())
    stats = calibrate(model, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    plan = allocate(random_scores(model), Recipe(ratio=0.4, uniform=True))
    even = prune(model, plan, stats)
    opened = model.adapter.auto_class.from_pretrained(export(even, tmp_path / "even", format="stock").path)
    assert torch.equal(logits(opened), logits(even.module))


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_with_fewer_layers_is_of_its_own_class(name, tmp_path):
    model = deep_model(name, tokenizer=make_tokenizer())
    stats = calibrate(model, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    plan = allocate(random_scores(model), Recipe(ratio=0.0, drop=("1",), compensation="none"))
    shorter = prune(model, plan, stats)
    written = export(shorter, tmp_path / "stock", format="stock")
    assert written.notes[0] == f"It is a {model.architecture} with no custom code."
    opened = model.adapter.auto_class.from_pretrained(written.path, dtype=torch.float32)
    assert torch.equal(logits(opened), logits(shorter.module))
    assert not list(written.path.glob("*.py"))
