import threading

import numpy as np
import pytest
import torch
from architectures import random_ids, random_scores, tiny_model, with_recipe
from scipy.optimize import linprog

from numprune import Cancelled, InputError, ModuleKey, NumericalError, Recipe, allocate, calibrate, perplexity, prune
from numprune.allocation.search import Sensitivity, sensitivity, spend, suggest

ROWS = random_ids(8, 24, seed=1)


@pytest.fixture(scope="module")
def scored():
    model = tiny_model("llama", num_hidden_layers=3)
    stats = calibrate(model, ROWS, samples=8, sequence_length=24)
    return model, stats, random_scores(model, seed=2)


def loss(model):
    return perplexity(model, ROWS, sequence_length=24).nll


@pytest.mark.parametrize("compensation", ["paper", "none"])
def test_a_point_of_a_curve_is_the_loss_of_the_really_pruned_model(scored, compensation):
    model, stats, scores = scored
    recipe = Recipe(compensation=compensation)
    curves = sensitivity(model, stats, scores, recipe, fractions=(0.5,))
    assert curves.loss == pytest.approx(loss(model))
    assert curves.tokens == 8 * 23
    # The rows were drawn in another order, which the mean does not see.
    for key in scores.modules:
        others = {other: 0.0 for other in scores.modules if other != key}
        plan = allocate(scores, Recipe(ratio=0.0, ratios={**others, key: 0.5}))
        pruned = prune(model, with_recipe(plan, compensation=compensation), stats)
        assert curves.increase[key][1] == pytest.approx(loss(pruned) - loss(model), abs=1e-5)
        assert curves.removed[key][1] == model.parameters - pruned.parameters


def test_curves_end_at_what_a_module_may_lose(scored):
    model, stats, scores = scored
    key = ModuleKey(1, "attention")
    recipe = Recipe(keep={key: (0, 3)}, ratios={ModuleKey(0, "mlp"): 0.25})
    curves = sensitivity(model, stats, scores, recipe)
    assert ModuleKey(0, "mlp") not in curves.removed
    assert curves.removed[key][-1] == 2 * scores.modules[key].cost
    other = ModuleKey(2, "attention")
    assert curves.removed[other][-1] == 3 * scores.modules[other].cost
    table = curves.to_pandas()
    assert set(table.groupby(["layer", "module"])["share"].max()) == {1.0}


def test_the_budget_is_spent_as_a_linear_program_would():
    generator = np.random.default_rng(0)
    for _ in range(20):
        removed, increase = {}, {}
        for layer in range(5):
            steps = np.sort(generator.uniform(0.1, 2, 4))
            removed[ModuleKey(layer, "mlp")] = np.cumsum([0, *generator.integers(5, 30, 4)])
            sizes = np.diff(removed[ModuleKey(layer, "mlp")])
            increase[ModuleKey(layer, "mlp")] = np.cumsum([0, *(steps * sizes)])
        curves = Sensitivity(removed, increase, 1.0, 1)
        budget = float(generator.uniform(20, 150))
        taken = spend(curves, budget)
        assert sum(taken.values()) == pytest.approx(budget)
        cost = sum(np.interp(taken[key], removed[key], increase[key]) for key in removed)
        slopes = np.concatenate([np.diff(increase[key]) / np.diff(removed[key]) for key in removed])
        bounds = [(0, size) for key in removed for size in np.diff(removed[key])]
        best = linprog(slopes, A_eq=np.ones((1, len(slopes))), b_eq=[budget], bounds=bounds)
        assert cost == pytest.approx(best.fun)


def test_a_module_that_costs_nothing_goes_first_even_behind_a_bump():
    free, dear = ModuleKey(0, "mlp"), ModuleKey(1, "mlp")
    curves = Sensitivity(
        {free: np.array([0, 10, 20]), dear: np.array([0, 10, 20])},
        {free: np.array([0, 0.5, 0.0]), dear: np.array([0, 0.1, 0.3])},
        1.0,
        1,
    )
    assert spend(curves, 20) == {free: 20, dear: 0}


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_a_suggestion_keeps_the_budget_and_is_never_worse_on_the_calibration_text(scored, ratio):
    model, stats, scores = scored
    recipe = Recipe(ratio=ratio)
    suggested = suggest(model, stats, scores, recipe, samples=8)
    before, after = allocate(scores, recipe), allocate(scores, suggested)
    assert abs(after.ratio_reached - ratio) * scores.prunable_parameters <= max(after.costs.values())
    assert len(suggested.ratios) == len(scores.modules) - 1
    assert loss(prune(model, after, stats)) <= loss(prune(model, before, stats)) + 1e-6


def test_budget_moves_to_a_module_that_hardly_matters():
    """On the model's own text every module is worth something, but for the MLP whose output is next to nothing."""
    model, idle = tiny_model("llama", num_hidden_layers=3), ModuleKey(1, "mlp")
    model.module.model.layers[1].mlp.down_proj.weight.mul_(1e-3)
    stats = calibrate(model, "self", samples=32, sequence_length=24)
    scores, recipe = random_scores(model), Recipe(ratio=0.2, allocation="uniform")
    before = allocate(scores, recipe)
    after = allocate(scores, suggest(model, stats, scores, recipe))
    assert len(after.keep[idle]) < len(before.keep[idle]) / 2
    dense, equal, moved = (
        perplexity(each, stats.rows.long(), sequence_length=24).nll
        for each in (model, prune(model, before, stats), prune(model, after, stats))
    )
    assert 0 < moved - dense < 0.8 * (equal - dense)


def test_locks_and_forced_units_stay(scored):
    model, stats, scores = scored
    lock, head = ModuleKey(0, "mlp"), ModuleKey(2, "attention")
    recipe = Recipe(ratio=0.4, ratios={lock: 0.25}, keep={head: (1,)}, prune={head: (2,)})
    suggested = suggest(model, stats, scores, recipe)
    assert suggested.ratios[lock] == 0.25
    assert (suggested.keep, suggested.prune) == (recipe.keep, recipe.prune)
    kept = allocate(scores, suggested).keep
    assert len(kept[lock]) == 18
    assert 1 in kept[head]
    assert 2 not in kept[head]


def test_the_model_is_only_read_and_a_stop_is_heeded(scored):
    model, stats, scores = scored
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        suggest(model, stats, scores, Recipe(), cancel=stop)
    sensitivity(model, stats, scores, Recipe(), fractions=(0.5,))
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


def test_bad_fractions_and_statistics_without_tokens_are_refused(scored):
    model, stats, scores = scored
    for fractions in ((), (0.0,), (1.5,)):
        with pytest.raises(InputError, match="fractions is"):
            sensitivity(model, stats, scores, Recipe(), fractions=fractions)
    rows, stats.rows = stats.rows, None
    with pytest.raises(InputError, match="calibrate again"):
        suggest(model, stats, scores, Recipe())
    stats.rows = rows


@pytest.mark.parametrize("compensation", ["paper", "network"])
def test_a_trial_that_is_not_finite_counts_as_an_infinite_loss(scored, compensation, monkeypatch):
    """One plan whose model overflows once ended the whole search."""
    model, stats, scores = scored
    recipe = Recipe(ratio=0.4, compensation=compensation)
    worst = ModuleKey(1, "mlp")

    def overflowing(pruned, rows, **_):
        narrow = {block.key: block for block in pruned.blocks}[worst]
        lost = narrow.units < 24 or bool((narrow.last.weight == 0).all(0).any())
        if lost:
            raise NumericalError("The model's logits are not finite.")
        return 3.0

    monkeypatch.setattr("numprune.allocation.trial.mean_loss", overflowing)
    curves = sensitivity(model, stats, scores, recipe)
    assert np.isinf(curves.increase[worst][1:]).all()
    assert all(np.isfinite(curves.increase[key]).all() for key in curves.increase if key != worst)
    assert spend(curves, 1e9)[worst] == 0
    chosen = suggest(model, stats, scores, recipe, curves=curves)
    assert len(chosen.ratios) == len(scores.modules) - 1
