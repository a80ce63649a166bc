from functools import cache

import pytest
import torch
from architectures import ARCHITECTURES, make_tokenizer, random_ids, random_scores, tiny_model

from numprune import InputError, NumericalError, Recipe, allocate, attention_patterns, calibrate, prune
from numprune.models.layer_sizes import groups_per_unit

TEXT = "the cat and a dog ran to them"

ALL = pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.startswith("llamagen")])
HOW = pytest.mark.parametrize("how", ["dense", "pruned"])


@cache
def model_of(name, how, attention=None):
    model = tiny_model(name, tokenizer=make_tokenizer(), attention=attention)
    if how == "dense":
        return model
    ratios = {"empty": {"0.attention": 0.99}, "pruned": {"0.attention": 0.5, "1.attention": 0.5}}[how]
    plan = allocate(random_scores(model), Recipe(ratio=0.0, ratios=ratios, allow_empty=True))
    stats = calibrate(model, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    return prune(model, plan, stats)


@torch.no_grad()
def told_by_transformers(model, ids, layer):
    return model.module(torch.tensor([ids]), output_attentions=True, use_cache=False).attentions[layer][0]


@ALL
@HOW
@pytest.mark.parametrize("layer", [0, 1])
def test_weights_are_those_eager_attention_tells(name, how, layer):
    # Without a wish transformers takes scaled_dot_product_attention where there is one.
    result = attention_patterns(model_of(name, how), TEXT, layer)
    eager = model_of(name, how, "eager")
    ids = eager.tokenizer(TEXT)["input_ids"]
    expected = told_by_transformers(eager, ids, layer)
    assert result.weights.shape == expected.shape == (expected.shape[0], len(ids), len(ids))
    torch.testing.assert_close(result.weights, expected, rtol=1e-5, atol=1e-6)
    assert result.weights.dtype == torch.float32
    torch.testing.assert_close(result.weights.sum(-1), torch.ones(expected.shape[:2]))
    # No token looks at a later one.
    assert not result.weights.triu(1).any()
    assert "".join(result.tokens) == TEXT
    assert len(result.tokens) == len(ids)


@ALL
@HOW
def test_heads_of_a_unit_are_those_its_group_feeds(name, how):
    model = model_of(name, how)
    result = attention_patterns(model, TEXT, 1)
    block = next(block for block in model.blocks if block.key == (1, "attention"))
    config = model.config.get_text_config()
    group = config.num_attention_heads // getattr(config, "num_key_value_heads", config.num_attention_heads)
    group *= groups_per_unit(config)
    assert result.units == block.units
    heads = [result.heads_of_unit(unit) for unit in range(result.units)]
    assert [len(each) for each in heads] == [group] * block.units
    assert [head for each in heads for head in each] == list(range(len(result.weights)))


@pytest.mark.parametrize("name", ["llama-gqa-tied", "phi3", "gpt-neox-parallel", "opt"])
def test_patterns_of_kept_heads_survive_pruning(name):
    dense = model_of(name, "dense")
    plan = allocate(random_scores(dense), Recipe(ratio=0.0, prune={"0.attention": (0,)}))
    stats = calibrate(dense, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    before, after = (attention_patterns(model, TEXT, 0) for model in (dense, prune(dense, plan, stats)))
    for unit, kept in enumerate(plan.keep[(0, "attention")]):
        for old, new in zip(before.heads_of_unit(kept), after.heads_of_unit(unit), strict=True):
            torch.testing.assert_close(after.weights[new], before.weights[old])


@pytest.mark.parametrize("name", ["llama-gqa-tied", "phi3", "gemma3"])
def test_the_model_is_left_in_peace(name):
    model = model_of(name, "pruned")
    implementation = model.config._attn_implementation
    state = {key: (value.data_ptr(), value.clone()) for key, value in model.module.state_dict().items()}
    attention_patterns(model, TEXT, 0)
    assert model.config._attn_implementation == implementation
    assert all(module.config._attn_implementation == implementation for module in configured(model))
    assert not any(module._forward_hooks for module in model.module.modules())
    for key, value in model.module.state_dict().items():
        assert value.data_ptr() == state[key][0]
        assert torch.equal(value, state[key][1])


def configured(model):
    return [module for module in model.module.modules() if hasattr(module, "config")]


def test_weights_are_not_copied(model, monkeypatch):
    copies = []
    deepcopy = torch.nn.Parameter.__deepcopy__
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", lambda *args: copies.append(1) or deepcopy(*args))
    attention_patterns(model, TEXT, 0)
    assert not copies


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_sum_to_one_in_half_precision_too(dtype):
    model = tiny_model("llama", tokenizer=make_tokenizer())
    expected = attention_patterns(model, TEXT, 0).weights
    model.module.to(dtype)
    weights = attention_patterns(model, TEXT, 0).weights
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
    torch.testing.assert_close(weights, expected, rtol=0.1, atol=0.02)


def test_a_limit_cuts_the_text(model):
    whole, some = attention_patterns(model, TEXT, 1), attention_patterns(model, TEXT, 1, limit=5)
    assert some.tokens == whole.tokens[:5]
    torch.testing.assert_close(some.weights, whole.weights[:, :5, :5])
    assert len(attention_patterns(model, "the " * 100, 0).tokens) == 48
    assert len(attention_patterns(model, "the " * 100, 0, limit=1000).tokens) == 64


def test_a_layer_without_heads_is_refused():
    model = model_of("llama", "empty")
    with pytest.raises(InputError, match="Layer 0 of tiny llama has no attention head left; choose another layer"):
        attention_patterns(model, TEXT, 0)
    assert attention_patterns(model, TEXT, 1).units == 4


@pytest.mark.parametrize(
    ("text", "layer", "options", "says"),
    [
        (TEXT, 2, {}, "Layer 2 is not in tiny llama-gqa-tied; give 0 to 1"),
        (TEXT, -1, {}, "Layer -1 is not in"),
        (TEXT, 0, {"limit": 0}, "limit is 0; give at least 1 token"),
        ("", 0, {}, "The text is empty; give at least one word"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused(model, text, layer, options, says):
    with pytest.raises(InputError, match=says):
        attention_patterns(model, text, layer, **options)


def test_a_model_without_tokenizer_is_refused():
    with pytest.raises(InputError, match="no tokenizer; give token ids"):
        attention_patterns(tiny_model("llama"), TEXT, 0)


@pytest.mark.parametrize("unit", [-1, 4])
def test_units_that_do_not_exist_are_refused(model, unit):
    with pytest.raises(InputError, match=f"Unit {unit} is not in 1.attention; give 0 to 3"):
        attention_patterns(model, TEXT, 1).heads_of_unit(unit)


def test_weights_that_are_not_finite_are_an_error(model):
    model.module.model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="attention of layer 0 is not finite on this text; load the model in"):
        attention_patterns(model, TEXT, 0)


def test_of_an_image_the_tokens_are_the_class_and_the_places():
    model = tiny_model("llamagen")
    row = model.rows(torch.tensor([2]), torch.arange(64)[None])[0]
    patterns = attention_patterns(model, row, 1, limit=11)
    assert patterns.tokens == ["2", "0,0", "0,1", "0,2", "0,3", "0,4", "0,5", "0,6", "0,7", "1,0", "1,1"]
    module = tiny_model("llamagen", attention="eager").module
    expected = module(input_ids=row[None, :11], output_attentions=True).attentions[1][0]
    torch.testing.assert_close(patterns.weights, expected, rtol=1e-4, atol=1e-6)
    captions = tiny_model("llamagen-text")
    row = captions.rows(torch.tensor([1]), torch.arange(64)[None])[0]
    assert attention_patterns(captions, row, 0, limit=4).tokens == ["none", "none", "none", "0,0"]
