import time
from functools import cache

import pytest
import torch
from architectures import ARCHITECTURES, random_ids, random_scores, tiny_model, with_recipe
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from numprune import InputError, Recipe, Sizes, allocate, calibrate, prune, sizes
from numprune.evaluation.random_models import Shape, random_llama

ALL = pytest.mark.parametrize("name", ARCHITECTURES)
HOW = pytest.mark.parametrize("how", ["dense", "pruned", "empty attention", "empty mlp", "empty"])


@cache
def dense(name):
    # The counter of operations knows the products of eager attention, not the kernels of others.
    return tiny_model(name, attention="eager")


@cache
def plan_for(name, how):
    model = dense(name)
    recipe = {
        "dense": Recipe(ratio=0.0),
        "pruned": Recipe(ratio=0.4, ratios={"1.attention": 0.5}),
        "empty attention": Recipe(ratio=0.2, ratios={"0.attention": 0.99}, allow_empty=True),
        "empty mlp": Recipe(ratio=0.2, ratios={"1.mlp": 0.99}, allow_empty=True),
        "empty": Recipe(ratio=0.0, ratios={block.key: 0.99 for block in model.blocks}, allow_empty=True),
    }
    return allocate(random_scores(model), recipe[how])


@cache
def model_of(name, how):
    model = dense(name)
    stats = calibrate(model, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    return model if how == "dense" else prune(model, with_recipe(plan_for(name, how), compensation="none"), stats)


def held_bytes(filled):
    tensors = [tensor for layer in filled.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.no_grad()
def decoded(model, context):
    """Operations of decoding one token after `context` others, as torch counts them; and the cache before it."""
    filled = DynamicCache(config=model.config)
    if context:
        model.module(input_ids=random_ids(1, context), past_key_values=filled, use_cache=True)
    before = held_bytes(filled) if context else 0
    with FlopCounterMode(display=False) as counter:
        model.module(input_ids=random_ids(1, 1), past_key_values=filled, use_cache=True)
    # Angles of rotary embeddings are computed by a matrix product too.
    of_modules = counter.get_flop_counts()
    rotary = sum(sum(ops.values()) for module, ops in of_modules.items() if module.endswith("rotary_emb"))
    return counter.get_total_flops() - rotary, before


@ALL
@HOW
def test_cache_bytes_are_those_a_cache_holds(name, how):
    model = model_of(name, how)
    # Fewer tokens than the windows of 6 hold.
    _, held = decoded(model, 5)
    assert 5 * sizes(model).kv_bytes == held


@ALL
@HOW
@pytest.mark.parametrize("context", [0, 4, 5, 6, 20])
def test_operations_are_those_torch_counts(name, how, context):
    model = model_of(name, how)
    flops, _ = decoded(model, context)
    assert sizes(model, context=context).flops == flops


@ALL
@HOW
def test_a_plan_tells_the_sizes_of_the_pruned_model(name, how):
    plan, pruned = plan_for(name, how), model_of(name, how)
    predicted = sizes(dense(name), plan, context=9)
    assert predicted == sizes(pruned, context=9)
    assert predicted.parameters == plan.parameters_after == pruned.parameters
    assert predicted.bytes == pruned.bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bytes_are_those_of_the_dtype(dtype):
    model = tiny_model("llama")
    full = sizes(model)
    model.module.to(dtype)
    half = sizes(model)
    assert (2 * half.bytes, 2 * half.kv_bytes) == (full.bytes, full.kv_bytes)
    assert (half.parameters, half.flops) == (full.parameters, full.flops)


def test_a_pruned_model_can_be_the_one_to_plan_for():
    once = model_of("phi3", "empty attention")
    plan = allocate(random_scores(once), Recipe(ratio=0.3))
    stats = calibrate(once, random_ids(4, 16), samples=4, sequence_length=16)
    assert sizes(once, plan) == sizes(prune(once, with_recipe(plan, compensation="none"), stats))


def test_a_textbook_count():
    # Multi-head attention and a gated MLP of Llama 2 7B in miniature: 2 layers of 32, 24 channels, 112 tokens.
    model = dense("llama")
    weights = 2 * (4 * 32 * 32 + 3 * 32 * 24) + 32 * 112
    assert sizes(model, context=99) == Sizes(
        parameters=model.parameters,
        bytes=4 * model.parameters,
        kv_bytes=2 * 2 * 32 * 4,
        flops=2 * weights + 2 * 2 * 2 * 100 * 32,
        context=99,
    )


def test_a_slider_can_wait_for_it():
    model = random_llama(Shape(hidden=32, channels=4096, layers=32, heads=16, vocabulary=64), device="cpu")
    plan = allocate(random_scores(model), Recipe(ratio=0.3))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        sizes(model, plan)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.05


def test_plans_of_other_models_are_refused():
    plan = plan_for("llama", "pruned")
    with pytest.raises(InputError, match="plan belongs to another model than tiny qwen2; make it for this one"):
        sizes(dense("qwen2"), plan)
    with pytest.raises(InputError, match="another model"):
        sizes(model_of("llama", "pruned"), plan)


def test_a_negative_context_is_refused():
    with pytest.raises(InputError, match="context is -1; give 0 or a positive number of tokens"):
        sizes(dense("llama"), context=-1)


def test_it_becomes_json():
    assert sizes(dense("llama")).to_dict()["context"] == 1000
