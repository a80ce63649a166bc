import gc
import json
import sys
import weakref

import pytest
from architectures import random_ids, with_recipe

from numprune import (
    Cancelled,
    InputError,
    Recipe,
    SweepPoint,
    allocate,
    perplexity,
    prune,
    score,
    sizes,
    sweep,
)
from numprune.evaluation.speed import Record, Run

QUICK = {"repetitions": 1, "prompt_tokens": 4, "new_tokens": 3}
MODULE = sys.modules["numprune.evaluation.sweep"]


@pytest.fixture
def scores(model, stats):
    return score(model, stats)


@pytest.fixture
def pruned_models(monkeypatch):
    """Weak references to what `sweep` pruned, with the plans."""
    calls = []

    def recording(model, plan, stats, **options):
        pruned = prune(model, plan, stats, **options)
        calls.append((weakref.ref(pruned.module), plan))
        return pruned

    monkeypatch.setattr(MODULE, "prune", recording)
    return calls


def test_points_are_those_of_models_pruned_by_hand(model, stats, scores):
    recipe = Recipe(ratio=0.7, allocation="uniform", ratios={"0.mlp": 0.25}, damping=0.1)
    data = random_ids(4, 32)
    points = list(sweep(model, stats, scores, recipe, [0.2, 0, 0.5], data=data, **QUICK))
    assert [point.ratio for point in points] == [0.2, 0, 0.5]
    for point in (points[0], points[2]):
        plan = allocate(scores, recipe.replace(ratio=point.ratio))
        pruned = prune(model, with_recipe(plan, damping=0.1), stats)
        assert point.reached == plan.ratio_reached == pytest.approx(point.ratio, abs=0.05)
        assert point.sizes == sizes(pruned) == sizes(model, plan)
        assert point.perplexity == perplexity(pruned, data)
    assert points[1].reached == 0
    assert points[1].sizes == sizes(model)
    assert points[1].perplexity == perplexity(model, data)
    for point in points:
        assert (point.speed.prompt_tokens, point.speed.new_tokens, point.speed.repetitions) == (4, 3, 1)
        assert point.speed.decode[0] > 0


def test_the_dense_model_is_measured_itself(model, stats, scores, pruned_models, monkeypatch):
    timed = recorded(monkeypatch)
    (point,) = sweep(model, stats, scores, Recipe(prune={"0.mlp": (0,)}), [0.0], **QUICK)
    assert len(timed) == 1
    assert [each is model for each in timed[0]] == [True]
    assert point.decode_gain == point.prefill_gain == (1.0, 1.0, 1.0)
    assert not pruned_models


def recorded(monkeypatch):
    """The models that are timed together, call by call; the second of two takes half as long for everything."""
    timed = []

    def in_turn(models, prompt, *, new_tokens, repetitions, **options):
        timed.append(list(models))
        paces = (1.0, 0.5)[: len(models)]
        seconds = [tuple(pace * (1 + step) for step in range(1 + new_tokens)) for pace in paces]
        return [Record([Run(tuple(range(1 + new_tokens)), each)] * repetitions) for each in seconds]

    monkeypatch.setattr(MODULE, "measure_in_turn", in_turn)
    return timed


def test_every_pruned_model_is_timed_in_turn_with_the_dense_one(model, stats, scores, monkeypatch):
    timed = recorded(monkeypatch)
    (point,) = sweep(model, stats, scores, Recipe(), [0.5], prompt_tokens=4, new_tokens=3, repetitions=3)
    assert [len(each) for each in timed] == [2]
    assert timed[0][0] is model
    assert timed[0][1].parameters == point.sizes.parameters < model.parameters
    assert point.decode_gain == point.prefill_gain == (2.0, 2.0, 2.0)
    # The figures are the pruned model's: three tokens in 1.5 s, four of the prompt in half a second.
    assert (point.speed.decode[0], point.speed.prefill[0], point.speed.repetitions) == (2.0, 8.0, 3)


def test_weights_are_refitted_only_for_perplexity(model, stats, scores, pruned_models):
    (bare,) = sweep(model, stats, scores, Recipe(), [0.3], **QUICK)
    assert bare.perplexity is None
    list(sweep(model, stats, scores, Recipe(), [0.3], data=random_ids(1, 16), **QUICK))
    list(sweep(model, stats, scores, Recipe(compensation="none"), [0.3], data=random_ids(1, 16), **QUICK))
    assert [plan.recipe.compensation for _, plan in pruned_models] == ["none", "paper", "none"]


def test_a_pruned_model_is_gone_when_its_point_is_there(model, stats, scores, pruned_models):
    gc.disable()
    try:
        for count, _ in enumerate(sweep(model, stats, scores, Recipe(), [0.2, 0.4, 0.6], **QUICK), 1):
            assert len(pruned_models) == count
            assert pruned_models[-1][0]() is None
    finally:
        gc.enable()


def test_the_model_is_left_in_peace(model, stats, scores, dense_state):
    list(sweep(model, stats, scores, Recipe(), [0.0, 0.5], data=random_ids(1, 16), **QUICK))
    state = model.module.state_dict()
    assert all((state[name] == dense_state[name]).all() for name in dense_state)


def test_points_become_json(model, stats, scores):
    for data in (None, random_ids(2, 16)):
        for point in sweep(model, stats, scores, Recipe(), [0.3], data=data, **QUICK):
            assert isinstance(point, SweepPoint)
            plain = point.to_dict()
            assert json.loads(json.dumps(plain, allow_nan=False)).keys() == plain.keys()
            assert plain["sizes"]["parameters"] == point.sizes.parameters
            assert (plain["perplexity"] is None) == (data is None)


def test_progress_names_the_point_and_cancel_stops(model, stats, scores):
    calls = []
    data = random_ids(1, 16)
    list(sweep(model, stats, scores, Recipe(), [0, 0.5], data=data, progress=lambda *c: calls.append(c), **QUICK))
    stages = list(dict.fromkeys(what for _, _, what in calls))
    assert stages[:2] == ["ratio 0: measuring speed", "ratio 0: measuring perplexity"]
    assert stages[2] == "ratio 0.5: pruning 0.attention"

    class Event:
        def is_set(self):
            return True

    for ratio in (0, 0.5):
        with pytest.raises(Cancelled):
            list(sweep(model, stats, scores, Recipe(), [ratio], cancel=Event(), **QUICK))


@pytest.mark.parametrize(("ratios", "says"), [([], "no ratio to prune at; give at least one"), ([0.1, 1.5], "1.5")])
def test_ratios_are_checked_before_the_first_point(model, stats, scores, ratios, says):
    with pytest.raises(InputError, match=says):
        sweep(model, stats, scores, Recipe(), ratios, **QUICK)


def test_a_recipe_of_another_model_is_refused(model, stats, scores):
    with pytest.raises(InputError, match="made for another model"):
        list(sweep(model, stats, scores, Recipe(fingerprint="0" * 16), [0.3], **QUICK))
