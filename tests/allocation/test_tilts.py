"""Tilted prices: what they are, and that the search for them finds the least loss within its trials."""

from dataclasses import replace

import numpy as np
import pytest
from architectures import random_ids, random_scores, tiny_model

from numprune import ModuleKey, Recipe, allocate, calibrate, perplexity, prune, suggest
from numprune.allocation import search
from numprune.allocation.tilts import TRIALS, Tilt, search_tilts

LAYERS = 5


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def scores(model):
    table = random_scores(model, seed=3)
    # Prices are not negative.
    modules = {key: replace(module, units=np.abs(module.units)) for key, module in table.modules.items()}
    return replace(table, modules=modules)


def test_prices_of_heads_and_along_the_depth_are_multiplied(scores):
    tilted = Tilt(heads=2.0, depth=1.0).applied(scores)
    for layer, factor in ((0, 0.5), (2, 1.0), (4, 2.0)):
        attention, mlp = ModuleKey(layer, "attention"), ModuleKey(layer, "mlp")
        assert np.allclose(tilted.modules[attention].units, 4 * factor * scores.modules[attention].units)
        assert np.allclose(tilted.modules[mlp].units, factor * scores.modules[mlp].units)
        assert tilted.modules[mlp].cost == scores.modules[mlp].cost


def heads_left(plan):
    return sum(len(kept) for key, kept in plan.keep.items() if key.kind == "attention")


def channels_left(plan, layer):
    return len(plan.keep[ModuleKey(layer, "mlp")])


LOSSES = {
    "more heads": lambda plan: -heads_left(plan),
    "fewer heads": heads_left,
    "the first layer whole": lambda plan: -channels_left(plan, 0),
    "the last layer whole": lambda plan: -channels_left(plan, LAYERS - 1),
    "as it was": lambda plan: 0.0,
}


@pytest.mark.parametrize("wanted", LOSSES)
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_every_plan_is_better_than_the_last_and_spends_the_budget(scores, wanted, ratio):
    recipe, measured = Recipe(ratio=ratio), []

    def loss(plan):
        measured.append(LOSSES[wanted](plan))
        return measured[-1]

    plans = list(search_tilts(loss, scores, recipe))
    assert plans[0].keep == allocate(scores, recipe).keep
    assert len(measured) <= TRIALS
    found = [LOSSES[wanted](plan) for plan in plans]
    assert found == sorted(found, reverse=True)
    assert found[-1] == min(measured)
    assert all(abs(plan.ratio_reached - ratio) < 0.06 for plan in plans)
    if wanted != "as it was":
        assert found[-1] < found[0]


def test_models_of_many_layers_get_the_ratios_of_the_best_tilt(model, scores, monkeypatch):
    monkeypatch.setattr(search, "MODULES", 4)
    stats = calibrate(model, random_ids(12, 24), samples=12, sequence_length=24)
    tried = []

    def loss(trial, keep):
        tried.append(keep)
        return -sum(len(kept) for key, kept in keep.items() if key.kind == "attention")

    monkeypatch.setattr("numprune.allocation.trial.FittedTrial.loss", loss)
    recipe = Recipe(ratio=0.4, compensation="network", ratios={"1.mlp": 0.5})
    suggested = suggest(model, stats, scores, recipe)
    assert suggested.suggested
    assert suggested.ratios[ModuleKey(1, "mlp")] == 0.5
    assert len(tried) <= TRIALS
    best = max(tried, key=lambda keep: sum(len(kept) for key, kept in keep.items() if key.kind == "attention"))
    kept = allocate(scores, suggested).keep
    # One module takes up what the coarse heads left of the budget.
    other = {key: len(kept[key]) - len(best[key]) for key in best if kept[key] != best[key]}
    head = max(module.cost for module in scores.modules.values())
    assert len(other) <= 1
    assert all(abs(units) * scores.modules[key].cost <= head for key, units in other.items())


@pytest.mark.parametrize("compensation", ["network", "paper"])
def test_a_tilted_suggestion_is_never_worse_on_what_it_was_chosen_by(model, scores, monkeypatch, compensation):
    monkeypatch.setattr(search, "MODULES", 4)
    rows = random_ids(12, 24)
    stats = calibrate(model, rows, samples=12, sequence_length=24)
    recipe = Recipe(ratio=0.4, compensation=compensation)
    trial = search.trial_for(model, stats, recipe, 32)
    plans = [allocate(scores, each) for each in (recipe, suggest(model, stats, scores, recipe))]
    assert trial.loss(plans[1].keep) <= trial.loss(plans[0].keep)
    if compensation == "paper":
        before, after = (perplexity(prune(model, plan, stats), trial.rows, sequence_length=24).nll for plan in plans)
        assert after <= before + 1e-6
