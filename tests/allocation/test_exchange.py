import math

import pytest
import torch
from architectures import random_ids, random_scores, tiny_model

from numprune import InputError, ModuleKey, Recipe, allocate, calibrate, perplexity, preset, prune, suggest
from numprune.allocation.exchange import exchange_budget, pinned, removed_parameters
from numprune.allocation.trial import FITTED, FittedTrial, MaskedTrial, trial_for
from numprune.calibration.statistics import CalibrationStats

ROWS = random_ids(24, 24, seed=1)


@pytest.fixture(scope="module")
def scored():
    model = tiny_model("llama", num_hidden_layers=3)
    stats = calibrate(model, ROWS, samples=24, sequence_length=24)
    return model, stats, random_scores(model, seed=2, scorer="fisher")


def best(**changes):
    return preset("best").applied(Recipe(**changes))


def test_a_trial_is_the_loss_of_the_model_pruned_and_fitted_on_the_other_sequences(scored):
    model, stats, scores = scored
    trial = FittedTrial(model, stats, best(ratio=0.4), samples=32)
    assert len(trial.fit_rows) == 12  # half, where sixteen would leave too few
    assert len(trial.rows) == 12
    plan = allocate(scores, best(ratio=0.4))
    part = CalibrationStats(**{**vars(stats), "rows": trial.fit_rows})
    expected = perplexity(prune(model, plan, part), trial.rows, sequence_length=24).nll
    assert trial.loss(plan.keep) == pytest.approx(expected, abs=1e-6)
    assert trial.dense_loss() == pytest.approx(perplexity(model, trial.rows, sequence_length=24).nll)


def test_a_trial_fits_on_enough_tokens_for_the_widest_module():
    model = tiny_model("llama", intermediate_size=600)
    stats = calibrate(model, random_ids(80, 48, seed=3), samples=80, sequence_length=48)
    assert len(FittedTrial(model, stats, best(), samples=8).fit_rows) == min(40, math.ceil(4 * 600 / 48))
    assert len(FittedTrial(model, stats, best(), samples=8).rows) == 8
    narrow = tiny_model("llama")
    assert len(FittedTrial(narrow, stats, best(), samples=8).fit_rows) == FITTED


def test_what_judges_a_plan_follows_the_compensation(scored):
    model, stats, _ = scored
    assert isinstance(trial_for(model, stats, best(), 8), FittedTrial)
    assert isinstance(trial_for(model, stats, Recipe(), 8), MaskedTrial)


def test_trials_need_sequences_to_fit_on_and_others_to_measure_on(scored):
    model, stats, _ = scored
    one = CalibrationStats(**{**vars(stats), "rows": stats.rows[:1]})
    with pytest.raises(InputError, match="cannot be fitted on and measured on"):
        FittedTrial(model, one, best(), 8)


def test_a_suggestion_keeps_the_budget_and_loses_no_more_on_the_trial_s_text(scored, monkeypatch):
    model, stats, scores = scored
    monkeypatch.setattr("numprune.allocation.search.WORTHWHILE", -1.0)
    recipe = best(ratio=0.4, ratios={ModuleKey(0, "mlp"): 0.25})
    suggested = suggest(model, stats, scores, recipe)
    before, after = allocate(scores, recipe), allocate(scores, suggested)
    assert abs(after.ratio_reached - 0.4) * scores.prunable_parameters <= max(after.costs.values())
    assert suggested.ratios[ModuleKey(0, "mlp")] == 0.25
    assert len(suggested.ratios) == len(scores.modules) - 1
    trial = trial_for(model, stats, recipe, 32)
    assert trial.loss(after.keep) <= trial.loss(before.keep)


class Priced:
    """A trial whose loss is the sum of what its modules cost for every unit that is gone."""

    def __init__(self, plan, prices):
        self.plan, self.prices = plan, prices

    def loss(self, keep):
        gone = {key: self.plan.units[key] - len(kept) for key, kept in keep.items()}
        return sum(price * gone[key] * self.plan.costs[key] for key, price in self.prices.items())


def test_budget_goes_from_the_module_that_misses_least_to_the_one_that_repays_most(scored):
    _, _, scores = scored
    recipe = Recipe(scorer="fisher", ratio=0.5, allocation="uniform")
    plan = allocate(scores, recipe)
    dear, cheap = ModuleKey(1, "mlp"), ModuleKey(2, "mlp")
    prices = dict.fromkeys(plan.keep, 1.0) | {dear: 3.0, cheap: 0.1}
    trial, free = Priced(plan, prices), list(plan.keep)
    start = pinned(recipe, plan, removed_parameters(plan, free))
    done = allocate(scores, exchange_budget(trial, scores, start, trial.loss(plan.keep), free, rounds=8))
    assert trial.loss(done.keep) < trial.loss(plan.keep)
    assert len(done.keep[dear]) > len(plan.keep[dear])
    assert len(done.keep[cheap]) < len(plan.keep[cheap])
    assert abs(done.ratio_reached - plan.ratio_reached) * scores.prunable_parameters <= max(plan.costs.values())


def test_what_helps_nowhere_is_not_done(scored):
    _, _, scores = scored
    recipe = Recipe(scorer="fisher", ratio=0.5, allocation="uniform")
    plan = allocate(scores, recipe)

    class Perfect:
        def loss(self, keep):
            return float(keep != plan.keep)

    free = list(plan.keep)
    start = pinned(recipe, plan, removed_parameters(plan, free))
    assert exchange_budget(Perfect(), scores, start, 0.0, free, rounds=3) is start


def test_the_dense_model_is_only_read(scored):
    model, stats, scores = scored
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    FittedTrial(model, stats, best(), 8).loss(allocate(scores, best(ratio=0.5)).keep)
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
