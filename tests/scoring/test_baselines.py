"""The scores of other methods, against their formulas on the activations themselves."""

import numpy as np
import pytest
import torch
from architectures import random_ids

from numprune import Recipe, allocate, score
from numprune.plan.keys import ModuleKey
from numprune.scoring.baselines import flap, random

TOKENS = random_ids(8, 32, seed=1)


@pytest.fixture
def inputs(model):
    """What enters the last linear of every module, (tokens, channels) float64."""
    found = {}
    hooks = [
        block.last.register_forward_pre_hook(
            lambda _, args, key=block.key: found.update({key: args[0].reshape(-1, args[0].shape[-1]).double()})
        )
        for block in model.blocks
    ]
    model.module(TOKENS)
    for hook in hooks:
        hook.remove()
    return found


def formulas(weight, x, kind):
    w = weight.double()
    fluctuation = torch.tensor([float(x[:, j].var()) * float((w[:, j] ** 2).sum()) for j in range(w.shape[1])])
    fluctuation = fluctuation.double() ** (2 if kind == "attention" else 1)
    return {
        "magnitude": [float(w[:, j].norm()) for j in range(w.shape[1])],
        "wanda_sp": [float((w[:, j].abs() * x[:, j].norm()).mean()) for j in range(w.shape[1])],
        "flap": ((fluctuation - fluctuation.mean()) / fluctuation.std()).tolist(),
    }


@pytest.mark.parametrize("method", ["magnitude", "wanda_sp", "flap"])
def test_scores_are_those_of_the_formula(model, stats, inputs, method):
    table = score(model, stats, scorer=method)
    for block in model.blocks:
        expected = formulas(block.last.weight, inputs[block.key], block.key.kind)[method]
        np.testing.assert_allclose(table.modules[block.key].channels, expected, rtol=2e-4, atol=1e-4)


def test_flap_does_not_care_about_a_constant_input(model, stats):
    key = ModuleKey(0, "mlp")
    module, weight = stats.modules[key], model.blocks[1].last.weight
    before = flap(weight, module, ratio=0.5, key=key)
    shift = torch.full_like(module.mean, 3.0)
    module.gram += module.tokens * (torch.outer(module.mean, shift) + torch.outer(shift, module.mean + shift))
    module.mean += shift
    torch.testing.assert_close(flap(weight, module, ratio=0.5, key=key), before, rtol=1e-6, atol=1e-6)


def test_flap_of_equal_channels_is_finite(model, stats):
    module = stats.modules[ModuleKey(0, "mlp")]
    module.gram.zero_()
    module.mean.zero_()
    assert torch.equal(flap(torch.ones(4, 24), module, ratio=0.5, key=ModuleKey(0, "mlp")), torch.zeros(24).double())


def test_random_is_the_same_on_every_run_and_another_in_every_module(model, stats):
    first, second = (score(model, stats, scorer="random") for _ in range(2))
    for key in first.modules:
        np.testing.assert_array_equal(first.modules[key].channels, second.modules[key].channels)
    weight, module = torch.ones(4, 24), stats.modules[ModuleKey(0, "mlp")]
    draws = {tuple(random(weight, module, ratio=0.5, key=key).tolist()) for key in first.modules}
    assert len(draws) == len(first.modules)


@pytest.mark.parametrize("method", ["magnitude", "wanda_sp", "flap", "random"])
def test_every_baseline_makes_a_plan(model, stats, method):
    recipe = Recipe(ratio=0.4, scorer=method, allocation="uniform")
    plan = allocate(score(model, stats, scorer=method), recipe)
    assert abs(plan.ratio_reached - 0.4) * plan.prunable_parameters <= max(plan.costs.values())
