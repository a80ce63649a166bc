"""Swaps of a whole plan."""

import threading
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from architectures import random_ids, random_scores, tiny_model

import numprune
from numprune import Cancelled, InputError, ModuleKey, Recipe, allocate, prune
from numprune.allocation.swaps import swap_units


def loss_of(block, gram, keep, damping):
    """||X W - X_S W'||² + gamma ||W - W'||² of the best weights W' of the kept units, by least squares."""
    size = len(gram)
    root = np.linalg.cholesky(gram.numpy() + damping * float(gram.diagonal().mean()) * np.eye(size)).T
    weight, channels = block.last.weight.double().numpy().T, block.channels(keep).numpy()
    kept, *_ = np.linalg.lstsq(root[:, channels], root @ weight, rcond=None)
    return float(np.square(root @ weight - root[:, channels] @ kept).sum())


def test_no_swap_of_two_units_of_a_module_would_lower_its_loss(model, stats):
    damping = 2.0
    plan = allocate(random_scores(model), Recipe(ratio=0.4, swaps=4, damping=damping, allocation="uniform"))
    swapped = swap_units(model, plan, stats)
    changed = 0
    for block in model.blocks:
        gram = stats.modules[block.key].gram
        before, after = plan.keep[block.key], swapped.keep[block.key]
        least = loss_of(block, gram, after, damping)
        assert (least < loss_of(block, gram, before, damping)) == (after != before)
        for out, into in product(after, set(range(block.units)) - set(after)):
            tried = sorted({*after, into} - {out})
            assert loss_of(block, gram, tried, damping) >= least * (1 - 1e-6)
        assert len(after) == len(before)
        changed += len(set(after) - set(before))
    assert changed > 5
    assert f"Swaps exchanged {changed}" in swapped.notes[-1]


def test_a_plan_whose_swaps_are_done_is_left_alone_and_announces_none(model, stats):
    plan = allocate(random_scores(model), Recipe(ratio=0.4, swaps=4))
    swapped = swap_units(model, plan, stats)
    assert (swapped.parameters_after, swapped.swapped, plan.swapped) == (plan.parameters_after, True, False)
    assert any("Swaps follow" in note for note in plan.remarks)
    assert not any("Swaps follow" in note for note in swapped.remarks)
    assert swap_units(model, swapped, stats) is swapped


def test_without_swaps_a_plan_is_left_alone(model, stats):
    plan = allocate(random_scores(model), Recipe())
    assert swap_units(model, plan, stats) is plan


def test_forced_units_stay_forced(model, stats):
    key = ModuleKey(0, "mlp")
    free = swap_units(model, allocate(random_scores(model), Recipe(ratio=0.5, swaps=8)), stats)
    kept, removed = set(free.keep[key]), set(range(24)) - set(free.keep[key])
    forced = {"keep": {key: tuple(removed)[:3]}, "prune": {key: tuple(kept)[:3]}}
    plan = swap_units(model, allocate(random_scores(model), Recipe(ratio=0.5, swaps=8, **forced)), stats)
    assert set(forced["keep"][key]) <= set(plan.keep[key])
    assert not set(forced["prune"][key]) & set(plan.keep[key])


@pytest.mark.parametrize("scorer", ["osscar", "newton", "magnitude"])
def test_the_recipe_repeats_the_swaps_to_the_same_bits(model, stats, scorer):
    recipe = Recipe(ratio=0.4, scorer=scorer, swaps=4)
    scores = numprune.score(model, stats, scorer=scorer)
    first = prune(model, allocate(scores, recipe), stats)
    assert first.recipe.swaps == 4
    again = prune(model, allocate(scores, Recipe.from_json(first.recipe.to_json())), stats)
    by_hand = prune(model, swap_units(model, allocate(scores, recipe), stats), stats)
    for other in (again, by_hand):
        state = other.module.state_dict()
        assert all(torch.equal(state[name], value) for name, value in first.module.state_dict().items())
        assert other.recipe == first.recipe


def test_swaps_lower_the_error_of_modules(model, stats):
    recipe = Recipe(ratio=0.4, scorer="random", allocation="uniform")
    scores = numprune.score(model, stats, scorer="random")
    errors = []
    for swaps in (0, 8):
        report = prune(model, allocate(scores, recipe.replace(swaps=swaps)), stats).report
        errors.append([module.error_after for module in report.modules])
    assert all(after <= before for before, after in zip(*errors, strict=True))
    assert sum(errors[1]) < 0.95 * sum(errors[0])


def test_wrong_owners_stops_and_numbers_are_heeded(model, stats):
    plan = allocate(random_scores(model), Recipe(ratio=0.4, swaps=4))
    with pytest.raises(InputError, match="plan belong to another model"):
        swap_units(model, replace(plan, fingerprint="other"), stats)
    other = tiny_model("llama")
    rows = random_ids(4, 16)
    with pytest.raises(InputError, match="statistics belong to another model"):
        swap_units(model, plan, numprune.calibrate(other, rows, samples=4, sequence_length=16))
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        swap_units(model, plan, stats, cancel=stop)
    with pytest.raises(InputError, match="swaps is -1"):
        Recipe(swaps=-1)
