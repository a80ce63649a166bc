"""Decode times by width: what is measured, kept and predicted."""

import dataclasses
import json

import numpy as np
import pytest
from architectures import deep_model, random_ids

from numprune import (
    InputError,
    Latency,
    ModuleKey,
    Recipe,
    allocate,
    calibrate,
    latency_of,
    measure_latency,
    prune,
    score,
    with_speedup,
)
from numprune.allocation.speedup import candidate
from numprune.evaluation import latency as module
from numprune.evaluation import time_budget
from numprune.evaluation.latency import _ascending
from numprune.evaluation.speed import Record, Run
from numprune.evaluation.time_budget import depth_for, reached_speedup, with_prices_of_the_rest
from numprune.models.prediction import mean_loss
from numprune.plan.presets import preset


@pytest.fixture(scope="module")
def model():
    return deep_model("llama", layers=3)


def clocked(monkeypatch, seconds):
    """Replace the clock by what a model is said to take for a token, and note which were timed."""
    seen = []

    def in_turn(models, prompt, *, new_tokens, batch, repetitions, memory=True, progress=None, cancel=None):
        records = []
        for each in models:
            seen.append({block.key: block.units for block in each.blocks})
            times = tuple(0.1 + seconds(each) * n for n in range(new_tokens + 1))
            records.append(Record([Run((1,) * (new_tokens + 1), times)] * repetitions))
        return records

    monkeypatch.setattr(module, "measure_in_turn", in_turn)
    return seen


def known(each):
    """A token takes 2 ms, every attention 1 ms and .1 for each head more, every MLP .5 ms and .01 for each channel."""
    total = 2.0
    for block in each.blocks:
        alone, per_unit = (1.0, 0.1) if block.key.kind == "attention" else (0.5, 0.01)
        total += (alone + per_unit * block.units) if block.units else 0.0
    return total / 1e3


def test_what_the_clock_says_is_found_by_width(model, monkeypatch):
    clocked(monkeypatch, known)
    found = measure_latency(model)
    assert found.dense == pytest.approx(known(model))
    for block in model.blocks:
        alone, per_unit = (1.0, 0.1) if block.key.kind == "attention" else (0.5, 0.01)
        for kept in range(block.units + 1):
            expected = (alone + per_unit * kept) / 1e3 if kept else 0.0
            assert found.of_module(block.key.kind, kept * block.cost) == pytest.approx(expected, abs=1e-9)
    sizes = {ModuleKey(0, "mlp"): 0, ModuleKey(1, "attention"): 0, ModuleKey(2, "mlp"): 3 * model.blocks[1].cost}
    units = model.units()
    expected = (
        known(model) - (0.5 + 0.01 * units[ModuleKey(0, "mlp")] + 1 + 0.1 * units[ModuleKey(1, "attention")]) / 1e3
    )
    expected -= 0.01 * (units[ModuleKey(2, "mlp")] - 3) / 1e3
    assert found.predicted(sizes) == pytest.approx(expected)
    assert found.speedup(sizes) == pytest.approx(known(model) / expected)
    assert found.speedup({}) == 1.0


def test_modules_that_differ_in_size_are_measured_too(monkeypatch):
    """An uneven model, such as one that was pruned before."""
    dense = deep_model("llama", layers=3)
    stats = calibrate(dense, random_ids(4, 16, seed=3), samples=4, sequence_length=16)
    recipe = Recipe(ratio=0.0, ratios={"0.mlp": 0.5, "1.attention": 0.5}, drop=["2.attention"])
    uneven = prune(dense, allocate(score(dense, stats, scorer="newton"), recipe), stats)
    clocked(monkeypatch, known)
    found = measure_latency(uneven)
    assert found.modules == {block.key: block.units * block.cost for block in uneven.blocks}
    assert found.speedup({}) == 1.0


def test_a_real_clock_gives_an_ascending_table(model):
    found = measure_latency(model, repetitions=2)
    assert found.dense > 0
    for kind, pairs in found.widths.items():
        sizes, seconds = np.array(pairs).T
        assert sizes[0] == seconds[0] == 0
        assert (np.diff(sizes) > 0).all()
        assert (np.diff(seconds) >= 0).all()
        assert sizes[-1] == next(size for key, size in found.modules.items() if key.kind == kind)
    assert (found.device, found.dtype, found.batch) == ("cpu", "float32", 1)


def test_seconds_that_cross_are_pooled():
    assert _ascending([(0, 0.0), (10, 3.0), (20, 1.0), (30, 5.0)]) == ((0, 0.0), (10, 2.0), (20, 2.0), (30, 5.0))
    # A module that seems to take less than none takes nothing.
    assert _ascending([(0, 0.0), (10, -2.0), (20, 4.0)]) == ((0, 0.0), (10, 0.0), (20, 5.0))


def test_times_are_measured_once_for_sizes_and_kept(model, monkeypatch, tmp_path):
    monkeypatch.setenv("NUMPRUNE_CACHE", str(tmp_path))
    seen = clocked(monkeypatch, known)
    first = latency_of(model)
    count = len(seen)
    assert latency_of(deep_model("llama", layers=3)) == first
    assert len(seen) == count
    assert latency_of(model, again=True) == first
    assert len(seen) == 2 * count
    assert latency_of(deep_model("llama", layers=2)) != first
    (kept,) = [
        path for path in tmp_path.glob("latency-*.json") if Latency.from_dict(json.loads(path.read_text())) == first
    ]
    kept.write_text("{")
    assert latency_of(model) == first


@pytest.mark.parametrize(
    "change",
    [
        {"dense": 0.0},
        {"dense": float("nan")},
        {"widths": {"mlp": [[0, 0], [1, 1]]}},
        {"widths": {"attention": [[0, 0], [10, 2], [5, 3]], "mlp": [[0, 0], [1, 1]]}},
        {"widths": {"attention": [[0, 0], [10, float("inf")]], "mlp": [[0, 0], [1, 1]]}},
        {"modules": {"x": 1}},
        {"more": 1},
    ],
)
def test_what_is_no_table_is_refused(model, monkeypatch, change):
    clocked(monkeypatch, known)
    values = measure_latency(model).to_dict() | change
    with pytest.raises(InputError, match="measure it again"):
        Latency.from_dict(values)


def test_a_recipe_for_a_speedup_is_chosen_and_reached(model, monkeypatch, tmp_path):
    """On a clock that is known, the pruned model is as fast as predicted and as asked for."""
    monkeypatch.setenv("NUMPRUNE_CACHE", str(tmp_path))
    clocked(monkeypatch, known)
    stats = calibrate(model, random_ids(6, 16, seed=3), samples=6, sequence_length=16)
    scores = score(model, stats, scorer="fisher")
    recipe = with_speedup(model, stats, scores, preset("fast").applied(Recipe(speedup=1.5)))
    assert with_speedup(model, stats, scores, recipe) == recipe
    plain = Recipe(scorer="fisher")
    assert with_speedup(model, stats, scores, plain) == plain
    plan = allocate(scores, recipe)
    pruned = prune(model, plan, stats)
    assert known(model) / known(pruned) >= 1.5
    said = reached_speedup(model, pruned, plan)
    assert "n = 5" in said
    assert "1.5 asked for" in said


def test_whole_modules_go_by_what_they_cost_for_the_time_they_save(model, monkeypatch):
    clocked(monkeypatch, known)
    stats = calibrate(model, random_ids(6, 16, seed=3), samples=6, sequence_length=16)
    latency, recipe = measure_latency(model), preset("fast").applied(Recipe(speedup=1.9))
    scores = score(model, stats, scorer="fisher")
    monkeypatch.setattr(time_budget, "PATIENCE", 99)
    found = depth_for(model, stats, scores, latency, recipe)
    alone = {}
    for block in model.blocks:
        plan = allocate(
            score(model, stats, scorer="random"),
            Recipe(ratio=0.0, scorer="random", drop=[block.key], compensation="none"),
        )
        rows = stats.token_rows("measure on").long()
        added = mean_loss(prune(model, plan, stats), rows) - mean_loss(model, rows)
        alone[(block.key,)] = added / float(latency.of_module(block.key.kind, block.units * block.cost))
    assert found.gone[1] == min(alone, key=alone.get)
    saved = [latency.dense - latency.predicted(dict.fromkeys(gone, 0)) for gone in found.gone]
    due = latency.dense * (1 - 1 / 1.9)
    assert saved[-2] < due <= saved[-1] + 1e-9
    assert depth_for(model, stats, scores, latency, recipe.replace(depth="none")) is None


class Told:
    """A trial that has found these losses, and notes what it is asked for."""

    def __init__(self, *losses):
        self.losses, self.plans = list(losses), []

    def loss(self, keep):
        self.plans.append(keep)
        return self.losses.pop(0)


def test_ratios_go_by_prices_in_the_model_without_what_goes_as_a_whole(model, monkeypatch):
    clocked(monkeypatch, known)
    stats = calibrate(model, random_ids(6, 16, seed=3), samples=6, sequence_length=16)
    scores, latency = score(model, stats, scorer="fisher"), measure_latency(model)
    recipe = preset("fast").applied(Recipe(speedup=1.9))
    drop = (ModuleKey(0, "attention"), ModuleKey(0, "mlp"), ModuleKey(1, "attention"))
    chosen = candidate(scores, latency, recipe, drop, 0.0).recipe
    # The same by hand: a pruned model of two layers, calibrated and scored by itself.
    plain = preset("balanced").applied(Recipe(ratio=0.0, drop=drop))
    rest = prune(model, allocate(scores, plain), stats)
    assert rest.origins == (1, 2)
    table = score(rest, calibrate(rest, stats.rows.long(), samples=6, sequence_length=16), scorer="fisher")
    modules = dict(scores.modules)
    for key in (ModuleKey(0, "mlp"), ModuleKey(1, "attention"), ModuleKey(1, "mlp")):
        modules[ModuleKey(rest.origins[key.layer], key.kind)] = table.modules[key]
    expected = candidate(dataclasses.replace(scores, modules=modules), latency, recipe, drop, 0.0).recipe
    assert expected.ratios != chosen.ratios
    given = (model, stats, scores, latency, recipe, chosen)
    better = Told(2.0, 1.0)
    assert with_prices_of_the_rest(*given, trial=better) == expected
    assert better.plans == [allocate(scores, each).keep for each in (chosen, expected)]
    assert with_prices_of_the_rest(*given, trial=Told(1.0, 2.0)) == chosen
    untouched = chosen.replace(drop=())
    assert with_prices_of_the_rest(*given[:-1], untouched, trial=Told()) == untouched
