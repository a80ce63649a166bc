"""What every architecture must do: pruned models compute what masked dense models compute, and nothing else."""

import copy
from contextlib import ExitStack, contextmanager
from functools import cache

import pytest
import torch
from architectures import (
    ARCHITECTURES,
    deep_model,
    make_tokenizer,
    random_ids,
    random_scores,
    tiny_model,
    with_recipe,
)
from transformers import DynamicCache

from numprune import ModuleKey, Recipe, Sampling, allocate, calibrate, load, prune, sizes
from numprune.generation.text import sample_tokens, unknown_tokens
from numprune.models.layer_sizes import text_config

ALL = pytest.mark.parametrize("name", ARCHITECTURES)
# transformers has no scaled_dot_product_attention for Gemma 2, whose attention logits are soft-capped.
ALL_WITH_ATTENTION = pytest.mark.parametrize(
    ("name", "attention"),
    [(name, kind) for name in ARCHITECTURES for kind in ("eager", "sdpa") if (name, kind) != ("gemma2", "sdpa")],
)
CACHE = pytest.mark.parametrize("use_cache", [False, True], ids=["no-cache", "cache"])


# Nothing below changes a model that came from a cached function.


@cache
def dense(name, attention=None):
    return tiny_model(name, attention=attention, tokenizer=make_tokenizer())


def calibrated(model):
    return calibrate(model, random_ids(4, 16, seed=3), samples=4, sequence_length=16)


@cache
def halved(name, attention=None, compensation="none"):
    """Half of the heads and of the channels of every module gone, chosen at random; with the plan."""
    model = dense(name, attention)
    generator = torch.Generator().manual_seed(11)
    halves = {
        block.key: tuple(torch.randperm(block.units, generator=generator)[: block.units // 2].tolist())
        for block in model.blocks
    }
    plan = allocate(random_scores(model), Recipe(ratio=0.0, prune=halves))
    return prune(model, with_recipe(plan, compensation=compensation), calibrated(model)), plan


@cache
def emptied(name, kind, attention=None):
    """The first layer's attention or MLP gone; with the plan."""
    model = dense(name, attention)
    plan = allocate(random_scores(model), Recipe(ratio=0.0, ratios={ModuleKey(0, kind): 0.99}, allow_empty=True))
    return prune(model, with_recipe(plan, compensation="none"), calibrated(model)), plan


@contextmanager
def masked(model, keep, gone=()):
    """The oracle: the dense model with the inputs of every last linear zeroed where units are pruned, and layers that
    are gone passing on what they are given."""

    def hook_for(block):
        mask = torch.zeros(block.units, block.width)
        mask[list(keep[block.key])] = 1
        return lambda module, args: (args[0] * mask.reshape(-1),)

    with ExitStack() as stack:
        for block in model.blocks:
            stack.callback(block.last.register_forward_pre_hook(hook_for(block)).remove)
        for index in gone:
            layer = model.adapter.layers(model.module)[index]
            stack.callback(layer.register_forward_hook(passed_on, with_kwargs=True).remove)
        yield


def passed_on(module, args, kwargs, output):
    """A hook by which a layer puts out what it was given."""
    given = args[0] if args else kwargs["hidden_states"]
    return given if isinstance(output, torch.Tensor) else (given, *output[1:])


def padded_batch():
    """Three rows of 12 tokens, the first two of them padded on the left."""
    ids = random_ids(3, 12, seed=7)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[1, :1] = 0
    return ids.masked_fill(mask == 0, 1), mask


@torch.no_grad()
def logits_of(model, *, use_cache=False):
    """Logits at the real tokens of the padded batch; with a cache, 7 tokens at once and the rest one by one."""
    ids, mask = padded_batch()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    if not use_cache:
        logits = model.module(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        return logits[mask.bool()]
    cache = DynamicCache(config=model.config)
    parts = []
    for begin, end in [(0, 7), *((i, i + 1) for i in range(7, ids.shape[1]))]:
        output = model.module(
            input_ids=ids[:, begin:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, begin:end],
            past_key_values=cache,
            use_cache=True,
        )
        parts.append(output.logits)
    return torch.cat(parts, dim=1)[mask.bool()]


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


def greedy(model, *, use_cache):
    ids, mask = padded_batch()
    sampling = Sampling(max_new_tokens=10, temperature=0)
    return torch.stack(list(sample_tokens(model, ids, mask, sampling, use_cache=use_cache)), dim=1)


@ALL
def test_the_tiny_models_have_the_units_their_configs_ask_for(name):
    model = dense(name)
    _, heads, channels = ARCHITECTURES[name]
    assert [block.units for block in model.blocks] == [heads, channels] * 2
    for block in model.blocks:
        assert block.last.in_features == block.units * block.width


@ALL_WITH_ATTENTION
@CACHE
def test_sliced_model_equals_masked_dense_model(name, attention, use_cache):
    model = dense(name, attention)
    pruned, plan = halved(name, attention)
    with masked(model, plan.keep):
        expected = logits_of(model, use_cache=use_cache)
    assert_close(logits_of(pruned, use_cache=use_cache), expected)
    # The comparison only means something when the masks matter.
    assert float((expected - logits_of(model)).abs().max()) > 0.01


@ALL
def test_compensated_weights_land_on_the_kept_channels(name):
    model = dense(name)
    pruned, plan = halved(name, compensation="paper")
    oracle = copy.copy(model)
    oracle.module = copy.deepcopy(model.module)
    changed = 0
    for block, smaller in zip(oracle.blocks, pruned.blocks, strict=True):
        kept = torch.zeros(block.units, block.width, dtype=torch.bool)
        kept[list(plan.keep[block.key])] = True
        changed += not torch.equal(block.last.weight[:, kept.reshape(-1)], smaller.last.weight)
        block.last.weight[:, kept.reshape(-1)] = smaller.last.weight
    assert changed == sum(block.units > 1 for block in model.blocks)
    with masked(oracle, plan.keep):
        expected = logits_of(oracle)
    assert_close(logits_of(pruned), expected)


@ALL_WITH_ATTENTION
def test_pruning_nothing_changes_nothing(name, attention):
    model = dense(name, attention)
    plan = allocate(random_scores(model), Recipe(ratio=0.0))
    pruned = prune(model, plan, calibrated(model))
    assert plan.parameters_after == model.parameters == pruned.parameters
    assert torch.equal(logits_of(pruned), logits_of(model))


@ALL
def test_predicted_parameters_are_the_counted_ones(name):
    model = dense(name)
    pruned, plan = halved(name)
    counted = sum(p.numel() for p in {id(p): p for p in pruned.module.parameters()}.values())
    assert counted == plan.parameters_after == pruned.report.parameters_after
    assert counted < plan.parameters_before == sum(p.numel() for p in model.module.parameters())


@ALL
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_predicted_parameters_of_emptied_modules_are_the_counted_ones(name, kind):
    model = dense(name)
    pruned, plan = emptied(name, kind)
    assert pruned.units()[ModuleKey(0, kind)] == 0
    assert sum(p.numel() for p in pruned.module.parameters()) == plan.parameters_after < model.parameters


@ALL_WITH_ATTENTION
@CACHE
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_emptied_module_equals_fully_masked_module(name, attention, use_cache, kind):
    model = dense(name, attention)
    pruned, plan = emptied(name, kind, attention)
    with masked(model, plan.keep):
        expected = logits_of(model, use_cache=use_cache)
    assert_close(logits_of(pruned, use_cache=use_cache), expected)


@ALL
@CACHE
def test_a_model_with_every_module_emptied_still_runs(name, use_cache):
    model = dense(name)
    ratios = {block.key: 0.99 for block in model.blocks}
    plan = allocate(random_scores(model), Recipe(ratio=0.0, ratios=ratios, allow_empty=True))
    pruned = prune(model, plan, calibrated(model))
    assert pruned.blocks == []
    assert pruned.prunable_parameters == 0
    with masked(model, plan.keep, plan.gone):
        expected = logits_of(model)
    assert_close(logits_of(pruned, use_cache=use_cache), expected)


@pytest.mark.parametrize("name", ["llama-biases", "opt", "gpt-neox-parallel", "gpt-neox-sequential"])
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_biases_of_output_projections_survive_emptying(name, kind):
    bias = next(block.last.bias for block in dense(name).blocks if block.key == (0, kind))
    pruned, _ = emptied(name, kind)
    without = copy.copy(pruned)
    without.module = copy.deepcopy(pruned.module)
    survivors = [p for p in without.module.parameters() if torch.equal(p, bias)]
    assert len(survivors) == 1
    survivors[0].zero_()
    assert float((logits_of(pruned) - logits_of(without)).abs().max()) > 1e-3


@ALL
@pytest.mark.parametrize("how", ["halved", "empty attention", "empty mlp"])
def test_saved_and_loaded_model_has_the_same_bits(name, how, tmp_path):
    pruned, _ = halved(name, compensation="paper") if how == "halved" else emptied(name, how.split()[1])
    pruned.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved", device="cpu")
    assert loaded.units() == pruned.units()
    assert loaded.parameters == pruned.parameters
    assert loaded.fingerprint() == pruned.fingerprint()
    assert torch.equal(logits_of(loaded), logits_of(pruned))
    assert torch.equal(greedy(loaded, use_cache=True), greedy(pruned, use_cache=True))


@ALL
def test_a_saved_dense_model_opens_here_and_in_transformers(name, tmp_path):
    model = dense(name)
    model.save(tmp_path / "saved")
    expected = logits_of(model)
    loaded = load(tmp_path / "saved", device="cpu")
    assert torch.equal(logits_of(loaded), expected)
    loaded.module = dense(name).adapter.auto_class.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(logits_of(loaded), expected)


@ALL_WITH_ATTENTION
def test_generation_with_cache_equals_generation_without(name, attention):
    pruned, _ = halved(name, attention)
    with_cache = greedy(pruned, use_cache=True)
    assert with_cache.shape == (3, 10)
    assert torch.equal(with_cache, greedy(pruned, use_cache=False))


@ALL
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_generation_with_an_emptied_module_is_the_same_with_and_without_cache(name, kind):
    pruned, _ = emptied(name, kind)
    assert torch.equal(greedy(pruned, use_cache=True), greedy(pruned, use_cache=False))


@ALL
@pytest.mark.parametrize("how", ["halved", "empty attention"])
def test_transformers_own_generate_writes_the_same_tokens(name, how):
    pruned, _ = halved(name) if how == "halved" else emptied(name, "attention")
    ids, mask = padded_batch()
    written = pruned.module.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=10,
        do_sample=False,
        pad_token_id=1,
        suppress_tokens=unknown_tokens(pruned).tolist() or None,
    )[:, ids.shape[1] :]
    ours = greedy(pruned, use_cache=True)
    assert torch.equal(ours.where(ours >= 0, torch.tensor(1)), written)


@ALL
def test_a_pruned_model_can_be_pruned_again(name):
    model = dense(name)
    once, first = halved(name)
    channels = {key: kept for key, kept in first.keep.items() if key.kind == "mlp"}
    plan = allocate(random_scores(once), Recipe(ratio=0.0, prune=dict.fromkeys(channels, (0, 2))))
    twice = prune(once, with_recipe(plan, compensation="none"), calibrated(once))
    both = {
        key: tuple(unit for i, unit in enumerate(kept) if key not in channels or i not in (0, 2))
        for key, kept in first.keep.items()
    }
    with masked(model, both):
        expected = logits_of(model)
    assert_close(logits_of(twice, use_cache=True), expected)
    assert plan.parameters_after == twice.parameters < once.parameters


@ALL
def test_unequal_cuts_in_each_layer(name):
    model = dense(name)
    heads = ARCHITECTURES[name][1]
    gone = (0,) if heads > 1 else ()  # nothing is emptied unless it is allowed
    prunes = {"0.mlp": (1, 3, 23), "1.mlp": tuple(range(20)), "1.attention": gone}
    plan = allocate(random_scores(model), Recipe(ratio=0.0, prune=prunes))
    pruned = prune(model, with_recipe(plan, compensation="none"), calibrated(model))
    assert list(pruned.units().values()) == [heads, 21, heads - len(gone), 4]
    with masked(model, plan.keep):
        expected = logits_of(model, use_cache=True)
    assert_close(logits_of(pruned, use_cache=True), expected)


@ALL
def test_bias_stands_for_the_mean_of_what_was_removed(name, tmp_path):
    model, (pruned, plan) = dense(name), halved(name, compensation="bias")
    stats = calibrated(model)

    def hook_for(block):
        gone = torch.ones(block.units, block.width, dtype=torch.bool)
        gone[list(plan.keep[block.key])] = False
        mean = stats.modules[block.key].mean.float()
        return lambda module, args: (torch.where(gone.reshape(-1), mean, args[0]),)

    with ExitStack() as stack:
        for block in model.blocks:
            stack.callback(block.last.register_forward_pre_hook(hook_for(block)).remove)
        expected = logits_of(model)
    assert_close(logits_of(pruned), expected)
    pruned.save(tmp_path / "saved")
    assert torch.equal(logits_of(load(tmp_path / "saved", device="cpu")), logits_of(pruned))


@ALL
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_an_emptied_module_may_leave_a_bias(name, kind, tmp_path):
    model = dense(name)
    key = ModuleKey(0, kind)
    recipe = Recipe(ratio=0.0, ratios={key: 0.99}, allow_empty=True)
    stats = calibrated(model)
    pruned = prune(model, with_recipe(allocate(random_scores(model), recipe), compensation="bias"), stats)
    block = next(block for block in model.blocks if block.key == key)
    constant = stats.modules[key].mean.float()
    with ExitStack() as stack:
        hook = block.last.register_forward_pre_hook(lambda module, args: (constant.expand_as(args[0]),))
        stack.callback(hook.remove)
        expected = logits_of(model)
    assert_close(logits_of(pruned), expected)
    pruned.save(tmp_path / "saved")
    assert torch.equal(logits_of(load(tmp_path / "saved", device="cpu")), logits_of(pruned))


# Modules and layers that go as a whole.

DROPS = pytest.mark.parametrize(
    "drop", [("0.attention",), ("1.mlp",), ("0",), ("2",), ("1", "2.mlp")], ids=lambda drop: "+".join(drop)
)


@cache
def deep(name, attention=None):
    """Four layers, so that some stay on both sides of one that goes."""
    return deep_model(name, tokenizer=make_tokenizer(), attention=attention)


@cache
def dropped(name, drop, attention=None, compensation="none"):
    model = deep(name, attention)
    recipe = Recipe(ratio=0.0, drop=drop, compensation=compensation)
    plan = allocate(random_scores(model), recipe)
    return prune(model, plan, calibrated(model)), plan


@ALL
@CACHE
@DROPS
def test_dropped_modules_and_layers_equal_masked_ones(name, use_cache, drop):
    model, (pruned, plan) = deep(name), dropped(name, drop)
    with masked(model, plan.keep, plan.gone):
        expected = logits_of(model, use_cache=use_cache)
    assert_close(logits_of(pruned, use_cache=use_cache), expected)
    assert float((expected - logits_of(model)).abs().max()) > 0.01


@ALL
@DROPS
def test_a_model_without_a_layer_has_one_fewer(name, drop):
    model, (pruned, plan) = deep(name), dropped(name, drop)
    whole = sum(part.isdecimal() for part in drop)
    assert pruned.layers == model.layers - whole == text_config(pruned.config).num_hidden_layers
    assert plan.gone == tuple(int(part) for part in drop if part.isdecimal())
    assert pruned.origins == (tuple(i for i in range(4) if i not in plan.gone) if whole else ())
    assert pruned.parameters == plan.parameters_after < model.parameters
    counted, predicted = sizes(pruned), sizes(model, plan)
    assert counted == predicted
    # Layers before the one that is gone keep their place, later ones move up, in the cache too.
    cache = DynamicCache(config=pruned.config)
    pruned.module(input_ids=random_ids(1, 5, seed=2), past_key_values=cache, use_cache=True)
    assert len(cache.layers) == pruned.layers


@ALL
@pytest.mark.parametrize("drop", [("1",), ("0", "2.mlp")], ids=lambda drop: "+".join(drop))
@pytest.mark.parametrize("compensation", ["none", "paper", "network"])
def test_a_model_without_a_layer_is_saved_and_opened_with_the_same_bits(name, drop, compensation, tmp_path):
    pruned, _ = dropped(name, drop, compensation=compensation)
    pruned.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved", device="cpu")
    assert (loaded.layers, loaded.origins, loaded.units()) == (pruned.layers, pruned.origins, pruned.units())
    assert loaded.fingerprint() == pruned.fingerprint()
    assert torch.equal(logits_of(loaded), logits_of(pruned))
    assert torch.equal(greedy(loaded, use_cache=True), greedy(pruned, use_cache=False))


@ALL
def test_what_is_fitted_after_a_dropped_layer_makes_up_for_it(name):
    """On the calibration text itself, where least squares can only gain."""
    model, rows = deep(name), random_ids(16, 32, seed=5)
    stats = calibrate(model, rows, samples=16, sequence_length=32)
    plan = allocate(random_scores(model), Recipe(ratio=0.0, drop=("1",), damping=1e-4, scarcity=0.0))
    expected = model.module(input_ids=rows, use_cache=False).logits
    errors = {}
    for compensation in ("none", "residual", "network"):
        pruned = prune(model, with_recipe(plan, compensation=compensation), stats)
        errors[compensation] = float((pruned.module(input_ids=rows, use_cache=False).logits - expected).norm())
    assert errors["residual"] < errors["none"]
    assert errors["network"] < errors["none"]


@ALL
def test_a_bias_that_stands_for_a_layer_keeps_it_there(name):
    model = deep(name)
    plan = allocate(random_scores(model), Recipe(ratio=0.0, drop=("1",), compensation="bias"))
    pruned = prune(model, plan, calibrated(model))
    assert plan.gone == ()
    assert pruned.layers == model.layers


def test_layers_with_norms_behind_their_sums_stay():
    model = deep_model("opt")
    model.config.do_layer_norm_before = False
    for layer in model.adapter.layers(model.module):
        layer.do_layer_norm_before = False
    plan = allocate(random_scores(model), Recipe(ratio=0.0, drop=("1",), compensation="none"))
    assert plan.gone == ()
    assert model.beside == (None,) * 4
    pruned = prune(model, plan, calibrated(model))
    with masked(model, plan.keep):
        expected = logits_of(model)
    assert_close(logits_of(pruned), expected)


@ALL
def test_a_model_without_a_layer_can_lose_another(name):
    once, _ = dropped(name, ("1",))
    plan = allocate(random_scores(once), Recipe(ratio=0.0, drop=("1",)))
    twice = prune(once, with_recipe(plan, compensation="none"), calibrated(once))
    both, _ = dropped(name, ("1", "2"))
    assert torch.equal(logits_of(twice), logits_of(both))
