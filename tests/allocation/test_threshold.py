import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from architectures import random_scores, tiny_model

from numprune import InputError, ModuleKey, Recipe, allocate
from numprune.scoring import ModuleScores, ScoreTable


def table(*, layers=4, heads=6, head_cost=40, channels=50, channel_cost=9, width=4, seed=0, remainder=0):
    """Random scores; every module has another number of units and its own mean score."""
    rng = np.random.default_rng(seed)
    modules = {}
    for layer in range(layers):
        for kind, units, cost, wide in (("attention", heads, head_cost, width), ("mlp", channels, channel_cost, 1)):
            count = units + layer
            per_channel = rng.standard_normal(count * wide) + rng.normal(0, 0.5)
            scores = per_channel.reshape(count, wide).mean(1)
            rest = remainder if kind == "attention" else 0
            modules[ModuleKey(layer, kind)] = ModuleScores(scores, per_channel, cost, rest)
    prunable = sum(module.cost * len(module.units) for module in modules.values())
    return ScoreTable(modules, "newton", 0.5, "table", "abc", prunable + 1000 + layers * remainder)


def removed_parameters(scores, plan):
    return sum(
        module.cost * (len(module.units) - len(plan.keep[key])) + (0 if plan.keep[key] else module.remainder)
        for key, module in scores.modules.items()
    )


def assert_consistent(scores, plan):
    """What holds for every plan, whatever the recipe."""
    assert list(plan.keep) == list(scores.modules)
    for key, kept in plan.keep.items():
        assert list(kept) == sorted(set(kept))
        assert set(kept) <= set(range(len(scores.modules[key].units)))
        assert plan.units[key] == len(scores.modules[key].units)
        assert plan.ratio(key) == pytest.approx(1 - len(kept) / plan.units[key])
    removed = removed_parameters(scores, plan)
    assert plan.parameters_before - plan.parameters_after == removed
    remainders = sum(module.remainder for key, module in scores.modules.items() if not plan.keep[key])
    assert plan.ratio_reached == pytest.approx((removed - remainders) / scores.prunable_parameters)


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("seed", range(5))
def test_ratio_is_reached_within_one_unit(allocation, seed):
    scores = table(seed=seed)
    dearest = max(module.cost for module in scores.modules.values())
    for ratio in np.linspace(0, 0.85, 52):
        plan = allocate(scores, Recipe(ratio=float(ratio), allocation=allocation))
        assert_consistent(scores, plan)
        assert abs(plan.ratio_reached - ratio) * scores.prunable_parameters <= dearest
        assert plan.ratio_asked == ratio
        assert plan.notes == []


@pytest.mark.parametrize("seed", range(6))
def test_global_removes_the_lowest_scores_up_to_the_nearest_budget(seed):
    # 7 units that may all go: every prefix of the sorted scores can be tried by hand.
    rng = np.random.default_rng(seed)
    modules = {
        ModuleKey(0, "attention"): ModuleScores(rng.standard_normal(3), np.zeros(12), 10),
        ModuleKey(0, "mlp"): ModuleScores(rng.standard_normal(4), np.zeros(4), 3),
    }
    scores = ScoreTable(modules, "newton", 0.5, "table", "abc", 42)
    units = sorted(
        (float(value), key, unit) for key, module in modules.items() for unit, value in enumerate(module.units)
    )
    costs = [modules[key].cost for _, key, _ in units]
    sums = [0, *itertools.accumulate(costs)]
    for ratio in np.linspace(0, 0.99, 40):
        plan = allocate(scores, Recipe(ratio=float(ratio), allow_empty=True))
        gone = {(key, unit) for key in modules for unit in range(len(modules[key].units)) if unit not in plan.keep[key]}
        count = len(gone)
        assert gone == {(key, unit) for _, key, unit in units[:count]}
        assert abs(sums[count] - ratio * 42) == pytest.approx(min(abs(total - ratio * 42) for total in sums))
        assert plan.threshold == (units[count - 1][0] if count else None)


@pytest.mark.parametrize("ratio", [0.15, 0.4, 0.7])
def test_threshold_separates_kept_from_removed(ratio):
    scores = table(seed=3)
    plan = allocate(scores, Recipe(ratio=ratio))
    for key, module in scores.modules.items():
        gone = np.setdiff1d(np.arange(len(module.units)), plan.keep[key])
        assert module.units[gone].max(initial=-math.inf) <= plan.threshold
        if len(plan.keep[key]) > 1:  # a last unit stays whatever its score
            assert module.units[list(plan.keep[key])].min() > plan.threshold


@pytest.mark.parametrize("ratio", [0.1, 0.33, 0.5, 0.8])
def test_uniform_cuts_every_module_by_the_same_ratio(ratio):
    scores = table(seed=1)
    plan = allocate(scores, Recipe(ratio=ratio, allocation="uniform"))
    for key, module in scores.modules.items():
        assert abs(len(module.units) * ratio - (len(module.units) - len(plan.keep[key]))) <= 1
        assert set(plan.keep[key]) == set(np.argsort(module.units)[-len(plan.keep[key]) :].tolist())


def test_uniform_and_global_differ():
    scores = table(seed=1)
    plans = [allocate(scores, Recipe(ratio=0.5, allocation=rule)) for rule in ("uniform", "global")]
    assert plans[0].keep != plans[1].keep


def test_nothing_is_removed_at_ratio_zero():
    scores = table()
    for rule in ("global", "uniform", "paper_printed"):
        plan = allocate(scores, Recipe(ratio=0, allocation=rule))
        assert all(len(kept) == plan.units[key] for key, kept in plan.keep.items())
        assert plan.ratio_reached == 0
        assert plan.parameters_after == plan.parameters_before == scores.parameters
        assert plan.threshold is None


def test_every_module_keeps_its_best_unit_unless_it_may_be_emptied():
    scores = table()
    plan = allocate(scores, Recipe(ratio=0.999))
    for key, module in scores.modules.items():
        assert plan.keep[key] == (int(module.units.argmax()),)
    assert len(plan.notes) == 1
    assert "every module keeps its last" in plan.notes[0]
    assert "99.9%" in plan.notes[0]
    emptied = allocate(scores, Recipe(ratio=0.999, allow_empty=True))
    assert sum(not kept for kept in emptied.keep.values()) >= len(scores.modules) - 2
    assert emptied.notes == []
    assert_consistent(scores, emptied)


def test_remainder_goes_with_the_last_unit_only():
    scores = table(remainder=7)
    key = ModuleKey(1, "attention")
    part = allocate(scores, Recipe(ratio=0, ratios={key: 0.5}))
    assert part.parameters_before - part.parameters_after == 40 * (7 - len(part.keep[key]))
    plan = allocate(scores, Recipe(ratio=0, ratios={key: 0.99}, allow_empty=True))
    assert plan.keep[key] == ()
    assert plan.parameters_before - plan.parameters_after == 40 * 7 + 7
    assert_consistent(scores, plan)


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_ratios_set_by_hand_are_met_and_counted_in_the_budget(allocation):
    scores = table(seed=2)
    by_hand = {ModuleKey(0, "mlp"): 0.9, ModuleKey(2, "attention"): 0.0, ModuleKey(3, "attention"): 0.5}
    plan = allocate(scores, Recipe(ratio=0.4, ratios=by_hand, allocation=allocation))
    assert len(plan.keep[ModuleKey(0, "mlp")]) == 5
    assert len(plan.keep[ModuleKey(2, "attention")]) == 8
    assert len(plan.keep[ModuleKey(3, "attention")]) in (4, 5)
    assert abs(plan.ratio_reached - 0.4) * scores.prunable_parameters <= 40
    assert_consistent(scores, plan)


def test_ratios_set_by_hand_that_overspend_are_noted():
    scores = table()
    heavy = {key: 0.8 for key in scores.modules if key.kind == "mlp"}
    plan = allocate(scores, Recipe(ratio=0.1, ratios=heavy))
    assert all(len(plan.keep[key]) == plan.units[key] for key in plan.keep if key.kind == "attention")
    assert len(plan.notes) == 1
    assert "more than the 10.0% asked for" in plan.notes[0]


def test_ratios_set_by_hand_that_leave_too_little_are_noted():
    scores = table()
    plan = allocate(scores, Recipe(ratio=0.5, ratios=dict.fromkeys(scores.modules, 0.1)))
    assert plan.ratio_reached < 0.2
    assert len(plan.notes) == 1
    assert "less than the 50.0% asked for" in plan.notes[0]


@pytest.mark.parametrize("allocation", ["global", "uniform", "paper_printed"])
def test_forced_units_stay_and_go_whatever_their_score(allocation):
    scores = table(seed=4)
    key = ModuleKey(1, "mlp")
    order = np.argsort(scores.modules[key].units)
    worst, best = tuple(order[:3].tolist()), tuple(order[-3:].tolist())
    for ratio in (0.0, 0.3, 0.8):
        plan = allocate(scores, Recipe(ratio=ratio, keep={key: worst}, prune={key: best}, allocation=allocation))
        assert set(worst) <= set(plan.keep[key])
        assert not set(best) & set(plan.keep[key])
        assert_consistent(scores, plan)


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_forced_units_count_in_the_budget(allocation):
    scores = table(seed=4)
    prune = {ModuleKey(1, "mlp"): tuple(range(20)), ModuleKey(0, "attention"): (0, 1)}
    plan = allocate(scores, Recipe(ratio=0.4, prune=prune, allocation=allocation))
    assert abs(plan.ratio_reached - 0.4) * scores.prunable_parameters <= 40
    assert plan.notes == []


def test_forcing_everything_to_stay_is_noted():
    scores = table()
    keep = {key: tuple(range(len(module.units))) for key, module in scores.modules.items()}
    plan = allocate(scores, Recipe(ratio=0.3, keep=keep))
    assert plan.ratio_reached == 0
    assert "every module keeps its last or its forced units" in plan.notes[0]


def test_forcing_a_whole_module_to_go_needs_allow_empty():
    scores = table()
    key = ModuleKey(0, "attention")
    prune = {key: tuple(range(6))}
    with pytest.raises(InputError, match=r"all 6 units of 0.attention; leave one or set allow_empty"):
        allocate(scores, Recipe(ratio=0.2, prune=prune))
    plan = allocate(scores, Recipe(ratio=0.2, prune=prune, allow_empty=True))
    assert plan.keep[key] == ()
    assert_consistent(scores, plan)


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.77])
def test_kept_counts_are_multiples_unless_the_module_is_whole(allocation, ratio):
    scores = table(channels=61, heads=9, seed=6)
    plan = allocate(scores, Recipe(ratio=ratio, allocation=allocation, round_heads=2, round_channels=8))
    for key, kept in plan.keep.items():
        multiple = 2 if key.kind == "attention" else 8
        assert len(kept) % multiple == 0 or len(kept) == plan.units[key]
        assert len(kept) > 0
    assert_consistent(scores, plan)
    # One step is at most 2 * 8 - 1 channels or 2 * 2 - 1 heads.
    assert abs(plan.ratio_reached - ratio) * scores.prunable_parameters <= max(15 * 9, 3 * 40)


def test_rounding_counts_what_stays_not_what_goes():
    scores = table(channels=50, layers=1)
    plan = allocate(scores, Recipe(ratio=0.0, ratios={"0.mlp": 0.3}, round_channels=16))
    assert len(plan.keep[ModuleKey(0, "mlp")]) == 32


def test_rounding_that_misses_the_ratio_is_noted():
    scores = table(layers=1, channels=64, heads=1, head_cost=1)
    plan = allocate(scores, Recipe(ratio=0.25, round_channels=64))
    assert plan.ratio_reached == 0
    assert len(plan.notes) == 1
    assert plan.notes[0].startswith(("Rounding", "Only"))


def test_a_multiple_larger_than_the_module_leaves_it_whole():
    scores = table(layers=1)
    plan = allocate(scores, Recipe(ratio=0.6, round_heads=100))
    assert len(plan.keep[ModuleKey(0, "attention")]) == 6


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.6, 0.9])
def test_paper_printed_is_a_threshold_over_units_with_scaled_heads(ratio):
    scores = table(seed=8, width=6)
    pooled = sorted(
        (value * (8.0 if key.kind == "attention" else 1.0), key, unit)
        for key, module in scores.modules.items()
        for unit, value in enumerate(module.units)
    )
    plan = allocate(scores, Recipe(ratio=ratio, allocation="paper_printed", allow_empty=True))
    gone = {(key, unit) for key in plan.keep for unit in range(plan.units[key]) if unit not in plan.keep[key]}
    assert abs(len(gone) - ratio * len(pooled)) <= 0.5
    assert gone == {(key, unit) for _, key, unit in pooled[: len(gone)]}
    assert any("paper_printed removes a share of the units" in note for note in plan.notes)
    assert_consistent(scores, plan)


def test_paper_printed_hardly_prunes_heads():
    scores = table(seed=8, width=64)
    # Scores near 1, as the Newton score gives them.
    for module in scores.modules.values():
        module.units[:] = 1 + 0.05 * module.units
    printed = allocate(scores, Recipe(ratio=0.5, allocation="paper_printed"))
    assert all(len(printed.keep[key]) == printed.units[key] for key in printed.keep if key.kind == "attention")
    ours = allocate(scores, Recipe(ratio=0.5))
    assert any(len(ours.keep[key]) < ours.units[key] for key in ours.keep if key.kind == "attention")


def test_equal_scores_still_reach_the_ratio():
    scores = table()
    for module in scores.modules.values():
        module.units[:] = 1.0
    for rule in ("global", "uniform"):
        plan = allocate(scores, Recipe(ratio=0.35, allocation=rule))
        assert abs(plan.ratio_reached - 0.35) * scores.prunable_parameters <= 40


def test_same_input_same_plan():
    first, second = (allocate(table(seed=9), Recipe(ratio=0.37)) for _ in range(2))
    assert first == second


def test_scores_are_left_alone():
    scores = table()
    before = {key: module.units.copy() for key, module in scores.modules.items()}
    for rule in ("global", "uniform", "paper_printed"):
        allocate(scores, Recipe(ratio=0.5, allocation=rule))
    for key, module in scores.modules.items():
        assert np.array_equal(module.units, before[key])


def test_a_seven_billion_parameter_model_is_cut_exactly():
    rng = np.random.default_rng(0)
    modules = {}
    for layer in range(32):
        heads, channels = rng.standard_normal(32 * 128), rng.standard_normal(11008)
        modules[ModuleKey(layer, "attention")] = ModuleScores(heads.reshape(32, 128).mean(1), heads, 4 * 4096 * 128)
        modules[ModuleKey(layer, "mlp")] = ModuleScores(channels, channels, 3 * 4096)
    scores = ScoreTable(modules, "newton", 0.5, "7B", "abc", 6738415616)
    assert scores.prunable_parameters == 6476005376
    for rule in ("global", "uniform"):
        plan = allocate(scores, Recipe(ratio=0.5, allocation=rule))
        assert_consistent(scores, plan)
        assert abs(plan.ratio_reached - 0.5) * scores.prunable_parameters <= 4 * 4096 * 128


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"fingerprint": "xyz", "model": "other"}, r"made for other \(fingerprint xyz\), not for table \(abc\)"),
        ({"ratios": {"9.mlp": 0.5}}, "ratios names 9.mlp, which table does not have"),
        ({"keep": {"4.attention": (0,)}}, "keep names 4.attention"),
        ({"prune": {"0.mlp": (50,)}}, "prune names units of 0.mlp outside 0 to 49"),
        ({"keep": {"0.mlp": (-1,)}}, "keep names units of 0.mlp outside 0 to 49"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(recipe, says):
    with pytest.raises(InputError, match=says):
        allocate(table(), Recipe(ratio=0.3, **recipe))


def test_a_recipe_for_this_model_is_accepted():
    assert allocate(table(), Recipe(ratio=0.3, fingerprint="abc")).ratio_reached > 0.25


@pytest.mark.parametrize("ratio", [1.0, -0.01, float("nan"), float("inf"), "0.3", None])
def test_ratios_out_of_range_are_refused(ratio):
    with pytest.raises(InputError, match="give a number from 0 up to but not including 1"):
        Recipe(ratio=ratio)
    with pytest.raises(InputError, match="give a number from 0 up to but not including 1"):
        Recipe(ratios={"0.mlp": ratio})


def test_tables_of_a_plan_and_of_scores_agree():
    scores = table()
    plan = allocate(scores, Recipe(ratio=0.4))
    modules, units = plan.to_pandas(), scores.to_pandas()
    assert len(modules) == 8
    assert modules["parameters_removed"].sum() == removed_parameters(scores, plan)
    assert (modules["kept"] + (modules["ratio"] * modules["units"]).round() == modules["units"]).all()
    assert units["parameters"].sum() == scores.prunable_parameters
    by_score = units.sort_values("rank")["score"].to_numpy()
    assert (np.diff(by_score) >= 0).all()
    last = units[(units["layer"] == 2) & (units["module"] == "mlp")]
    assert sorted(last["rank_in_module"]) == list(range(52))
    assert last.loc[last["rank_in_module"].idxmin(), "score"] == last["score"].min()


def test_costs_are_the_parameters_of_the_real_linears():
    model = tiny_model("qwen2")
    scores = random_scores(model)
    # Two KV groups of two query heads of width 8, hidden size 32, biases on q, k and v.
    assert scores.modules[ModuleKey(0, "attention")].cost == (16 + 8 + 8) * 33 + 16 * 32
    assert scores.modules[ModuleKey(0, "mlp")].cost == 3 * 32
    linears = [m for m in model.module.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert scores.prunable_parameters == sum(p.numel() for linear in linears for p in linear.parameters())


def test_a_lock_that_cannot_be_kept_is_told():
    key = next(iter(table().modules))
    units = len(table().modules[key].units)
    forced = Recipe(ratio=0.3, ratios={key: 0.9}, keep={key: tuple(range(units - 1))})
    plan = allocate(table(), forced)
    assert len(plan.keep[key]) >= units - 1
    assert any(
        note.startswith(f"{key} loses 1 of {units} units instead of the 90.0% of its ratio") for note in plan.notes
    )
    easy = allocate(table(), Recipe(ratio=0.3, ratios={key: 0.5}))
    assert not any("instead of the" in note and note.startswith(str(key)) for note in easy.notes)


def test_scores_of_another_scorer_than_the_recipe_s_are_refused():
    with pytest.raises(InputError, match=r"goes by scorer fisher and these scores are of .*; score"):
        allocate(table(), Recipe(ratio=0.3, scorer="fisher"))


def test_scores_for_another_ratio_than_a_replay_has_are_told():
    shifted = dataclasses.replace(table(), ratio=0.3)
    assert any("scores for 0.5" in note for note in allocate(shifted, Recipe(ratio=0.3)).notes)
