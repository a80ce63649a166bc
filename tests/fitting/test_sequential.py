import threading

import pytest
import torch
from architectures import ARCHITECTURES, random_ids, random_scores, tiny_model, with_recipe

from numprune import (
    Cancelled,
    InputError,
    ModuleKey,
    Recipe,
    allocate,
    calibrate,
    compensate,
    held_out_text,
    load,
    perplexity,
    prune,
    score,
)
from numprune.calibration.data import documents
from numprune.fitting.sequential import fit_to_dense
from numprune.models.adapter import adapter_for
from numprune.models.model import slice_module

POST_NORMS = ("gemma2", "gemma3", "olmo2")


def calibrated(name="llama", **options):
    model = tiny_model(name, **options)
    return model, calibrate(model, random_ids(12, 24, seed=1), samples=12, sequence_length=24)


def cut(model, ratio=0.4, **settings):
    return allocate(random_scores(model, seed=3), Recipe(ratio=ratio, **settings))


def streams(module, rows):
    """Hidden states behind the last layer, before the final norm."""
    found = []
    hook = (
        adapter_for(module.config)
        .layers(module)[-1]
        .register_forward_hook(lambda _, __, output: found.append(output[0] if isinstance(output, tuple) else output))
    )
    with torch.no_grad():
        module.base_model(input_ids=rows, use_cache=False)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_residual_stream_is_nearer_to_the_dense_one_than_by_the_paper_s_compensation(name):
    model, stats = calibrated(name)
    rows = random_ids(12, 24, seed=1)
    plan = cut(model)
    dense = streams(model.module, rows)
    lost = {}
    for compensation in ("none", "paper", "residual", "network"):
        # 288 tokens: with the default, little of the fit would be left.
        pruned = prune(model, with_recipe(plan, compensation=compensation, scarcity=100), stats)
        lost[compensation] = float((streams(pruned.module, rows) - dense).square().sum())
    if name in POST_NORMS:
        # Their modules are fitted to their own outputs, so only the inputs that have drifted are made up for.
        assert lost["network"] < lost["paper"] < lost["none"]
    else:
        assert lost["network"] < lost["residual"] < lost["paper"] < lost["none"]


def test_the_first_module_is_compensated_as_in_the_paper():
    """Nothing was lost before it, so its target is its own dense output and its inputs are the dense ones."""
    model, stats = calibrated()
    key = ModuleKey(0, "attention")
    keep = {key: (0, 2, 3)}
    narrow = slice_module(model.module, model.adapter, keep)
    fit_to_dense(model.module, narrow, model.adapter, stats.rows, damping=0.0)
    block = model.blocks[0]
    expected = compensate(block.last.weight, stats.modules[key].gram, block.channels(keep[key]), damping=1e-9)
    torch.testing.assert_close(narrow.model.layers[0].self_attn.o_proj.weight.double(), expected, atol=2e-4, rtol=1e-3)


def test_every_module_solves_its_least_squares_problem():
    """Against torch.linalg.lstsq on the inputs and targets, collected from whole forward passes."""
    model, stats = calibrated("opt")
    keep = {ModuleKey(0, "attention"): (1, 2), ModuleKey(1, "mlp"): tuple(range(0, 24, 2))}
    narrow = slice_module(model.module, model.adapter, keep)
    fit_to_dense(model.module, narrow, model.adapter, stats.rows, damping=1e-7)
    rows = random_ids(12, 24, seed=1)
    last = narrow.model.decoder.layers[1].fc2
    found = {}
    hook = last.register_forward_hook(lambda _, args, output: found.update(x=args[0], y=output))
    behind = streams(narrow, rows)
    hook.remove()
    entering = behind - found["y"].reshape(behind.shape)
    target = streams(model.module, rows) - entering - last.bias
    x = found["x"].reshape(-1, found["x"].shape[-1]).double()
    # Channels that ReLU keeps at zero leave the weights undetermined, but not the output.
    expected = x @ torch.linalg.lstsq(x, target.reshape(-1, target.shape[-1]).double(), driver="gelsd").solution
    torch.testing.assert_close(x @ last.weight.T.double(), expected, atol=1e-2, rtol=1e-2)


def test_what_feeds_the_units_solves_its_least_squares_problem():
    """Against torch.linalg.lstsq, for a fused projection: the kept heads see what they saw in the dense network."""
    model, stats = calibrated("gpt-neox-sequential")
    keep = {ModuleKey(0, "mlp"): tuple(range(0, 24, 2)), ModuleKey(1, "attention"): (0, 3)}
    narrow = slice_module(model.module, model.adapter, keep)
    whole = {block.key: tuple(range(block.units)) for block in model.blocks}
    fit_to_dense(model.module, narrow, model.adapter, stats.rows, keep={**whole, **keep}, damping=1e-9)
    found = {}
    linears = {"dense": model.module.gpt_neox.layers[1].attention.query_key_value}
    linears["narrow"] = narrow.gpt_neox.layers[1].attention.query_key_value
    for name, linear in linears.items():
        hook = linear.register_forward_hook(lambda _, args, out, name=name: found.update({name: (args[0], out)}))
        streams(model.module if name == "dense" else narrow, random_ids(12, 24, seed=1))
        hook.remove()
    rows = torch.cat([torch.arange(24 * head, 24 * head + 24) for head in (0, 3)])
    x = found["narrow"][0].reshape(-1, 32).double()
    target = (found["dense"][1][..., rows] - linears["dense"].bias[rows]).reshape(-1, 48).double()
    # A LayerNorm leaves one direction of its output empty, which the weights are free in.
    expected = x @ torch.linalg.lstsq(x, target, driver="gelsd").solution
    torch.testing.assert_close(x @ linears["narrow"].weight.T.double(), expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(linears["narrow"].bias, linears["dense"].bias[rows])


@pytest.mark.parametrize("compensation", ["residual", "network"])
def test_pruning_nothing_changes_nothing(compensation):
    model, stats = calibrated()
    same = prune(
        model, with_recipe(allocate(random_scores(model), Recipe(ratio=0.0)), compensation=compensation), stats
    )
    state = same.module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.module.state_dict().items())


def test_the_batch_size_does_not_matter():
    model, stats = calibrated("qwen2")
    keep = cut(model).keep
    fitted = []
    for size in (12, 5):
        narrow = slice_module(model.module, model.adapter, keep)
        fit_to_dense(model.module, narrow, model.adapter, stats.rows, batch_size=size)
        fitted.append(narrow.state_dict())
    for name, value in fitted[0].items():
        torch.testing.assert_close(fitted[1][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("compensation", ["residual", "network"])
def test_the_same_seed_gives_the_same_bits(compensation):
    model, stats = calibrated()
    plan = cut(model)
    first, second = (
        prune(model, with_recipe(plan, compensation=compensation), stats).module.state_dict() for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_emptied_module_is_made_up_for_by_the_next():
    model, stats = calibrated()
    plan = cut(model, 0.5, allow_empty=True, prune={ModuleKey(0, "attention"): tuple(range(4))})
    assert plan.keep[ModuleKey(0, "attention")] == ()
    rows = random_ids(12, 24, seed=1)
    dense = streams(model.module, rows)
    lost = [
        float((streams(prune(model, with_recipe(plan, compensation=how), stats).module, rows) - dense).square().sum())
        for how in ("paper", "residual")
    ]
    assert lost[1] < lost[0]


def test_the_dense_model_is_only_read_and_a_stop_is_heeded():
    model, stats = calibrated()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        prune(model, with_recipe(cut(model), compensation="residual"), stats, cancel=stop)
    prune(model, with_recipe(cut(model), compensation="residual"), stats)
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.module.modules())


def test_statistics_without_tokens_and_bad_damping_are_refused():
    model, stats = calibrated()
    with pytest.raises(InputError, match="damping is -1"):
        prune(model, with_recipe(cut(model), compensation="residual", damping=-1.0), stats)
    stats.rows = None
    with pytest.raises(InputError, match="calibrate again"):
        prune(model, with_recipe(cut(model), compensation="residual"), stats)


def test_few_tokens_change_the_weights_less():
    """512 tokens for modules of 512 channels: without more damping the fit would take noise for what was lost."""
    model = load("tiny-stories", device="cpu")
    stats = calibrate(model, "self", samples=8, sequence_length=64)
    plan = allocate(score(model, stats), Recipe(ratio=0.3, allocation="uniform"))
    held_out = documents(held_out_text(), "test")[:16]

    def loss(**settings):
        return perplexity(prune(model, with_recipe(plan, **settings), stats), held_out).nll

    fitted = loss(compensation="network")
    assert fitted < loss(compensation="none")
    assert fitted < loss(compensation="network", scarcity=0) - 0.02
