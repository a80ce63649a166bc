"""Plans that keep the same counts in every layer."""

import numpy as np
import pytest
from test_threshold import assert_consistent

from numprune import InputError, ModuleKey, Recipe, allocate
from numprune.scoring import ModuleScores, ScoreTable

HEAD, CHANNEL = 40, 9


def table(*, layers=5, heads=8, channels=60, seed=0):
    """Random scores of layers of one size, each with its own mean."""
    rng = np.random.default_rng(seed)
    modules = {}
    for layer in range(layers):
        for kind, units, cost, width in (("attention", heads, HEAD, 4), ("mlp", channels, CHANNEL, 1)):
            per_channel = rng.standard_normal(units * width) + rng.normal(0, 0.5)
            scores = per_channel.reshape(units, width).mean(1)
            modules[ModuleKey(layer, kind)] = ModuleScores(scores, per_channel, cost)
    prunable = sum(module.cost * len(module.units) for module in modules.values())
    return ScoreTable(modules, "newton", 0.5, "table", "abc", prunable + 1000)


def counts(plan):
    """Heads and channels that every layer keeps."""
    kept = {kind: {len(units) for key, units in plan.keep.items() if key.kind == kind} for kind in ("attention", "mlp")}
    assert all(len(each) == 1 for each in kept.values())
    return tuple(next(iter(each)) for each in kept.values())


def uniform(scores, ratio, **settings):
    plan = allocate(scores, Recipe(ratio=float(ratio), uniform=True, **settings))
    assert_consistent(scores, plan)
    return plan


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("seed", range(3))
def test_reaches_the_ratio_within_half_a_channel_of_every_layer(allocation, seed):
    scores = table(seed=seed)
    for ratio in np.linspace(0, 0.85, 35):
        plan = uniform(scores, ratio, allocation=allocation)
        counts(plan)
        assert abs(plan.ratio_reached - ratio) * scores.prunable_parameters <= 5 * CHANNEL / 2 + 1e-6
        assert plan.notes == []


def test_each_layer_keeps_its_own_highest_scores():
    scores = table()
    plan = uniform(scores, 0.4)
    for key, kept in plan.keep.items():
        order = np.argsort(-scores.modules[key].units)
        assert set(kept) == set(order[: len(kept)].tolist())
    assert len({plan.keep[ModuleKey(layer, "mlp")] for layer in range(5)}) > 1
    gone = [np.delete(scores.modules[key].units, list(kept)).max() for key, kept in plan.keep.items()]
    assert plan.threshold == max(gone)


@pytest.mark.parametrize("seed", range(4))
def test_global_removes_ranks_in_the_order_of_their_mean_score(seed):
    """Walked one step after the other; channels then make up what whole steps of heads leave."""
    scores = table(seed=seed)
    means = {
        kind: np.mean([np.sort(m.units) for key, m in scores.modules.items() if key.kind == kind], axis=0)
        for kind in ("attention", "mlp")
    }
    cost = {"attention": 5 * HEAD, "mlp": 5 * CHANNEL}
    for ratio in (0.1, 0.3, 0.5, 0.7):
        room, gone = ratio * scores.prunable_parameters, {"attention": 0, "mlp": 0}
        while True:
            left = [kind for kind in gone if gone[kind] < len(means[kind]) - 1]
            lowest = min(left, key=lambda kind: means[kind][gone[kind]])
            # A step is taken when it brings the sum nearer to the budget.
            if cost[lowest] >= 2 * room:
                break
            room -= cost[lowest]
            gone[lowest] += 1
            if room <= 0:
                break
        heads, channels = counts(uniform(scores, ratio))
        assert heads == 8 - gone["attention"]
        assert channels == 60 - round(gone["mlp"] + room / cost["mlp"])


def test_uniform_allocation_takes_the_same_ratio_of_heads_and_of_channels():
    assert counts(uniform(table(), 0.25, allocation="uniform")) == (6, 45)
    assert counts(uniform(table(), 0.5, allocation="uniform")) == (4, 30)


def test_kept_counts_are_multiples():
    for ratio in np.linspace(0.05, 0.8, 16):
        heads, channels = counts(uniform(table(), ratio, round_heads=2, round_channels=16))
        assert heads % 2 == 0
        assert channels % 16 == 0 or channels == 60


def test_forced_units_bound_what_every_layer_keeps():
    scores = table()
    plan = uniform(scores, 0.0, prune={"1.attention": (0, 7)})
    assert counts(plan)[0] == 6
    assert not {0, 7} & set(plan.keep[ModuleKey(1, "attention")])
    plan = uniform(scores, 0.85, keep={"3.mlp": range(20, 40)})
    assert counts(plan)[1] >= 20
    assert set(range(20, 40)) <= set(plan.keep[ModuleKey(3, "mlp")])
    with pytest.raises(InputError, match=r"2.attention must keep 7 units and 1.attention can keep 6 at most"):
        uniform(scores, 0.3, keep={"2.attention": range(7)}, prune={"1.attention": (0, 7)})


def test_a_ratio_of_one_layer_holds_for_all_and_two_ratios_are_refused():
    plan = uniform(table(), 0.4, ratios={"2.attention": 0.25})
    assert counts(plan)[0] == 6
    assert plan.notes == ["The ratio of 2.attention, 0.25, holds for every layer, since all keep the same counts."]
    everywhere = {f"{layer}.attention": 0.25 for layer in range(5)}
    assert uniform(table(), 0.4, ratios=everywhere).notes == []
    with pytest.raises(InputError, match=r"sets 0.mlp to 0.1 and 3.mlp to 0.5 but wants the same number"):
        uniform(table(), 0.4, ratios={"3.mlp": 0.5, "0.mlp": 0.1})


def test_layers_of_unequal_sizes_are_brought_to_the_same_counts():
    scores = table()
    key = ModuleKey(4, "mlp")
    short = ModuleScores(scores.modules[key].units[:50], scores.modules[key].channels[:50], CHANNEL)
    unequal = ScoreTable({**scores.modules, key: short}, "newton", 0.5, "table", "abc", scores.parameters)
    assert counts(uniform(unequal, 0.0)) == (8, 50)
    plan = uniform(unequal, 0.5)
    counts(plan)
    assert abs(plan.ratio_reached - 0.5) * unequal.prunable_parameters <= 5 * CHANNEL / 2 + 1e-6


def test_a_layer_without_heads_is_refused():
    scores = table()
    bare = {key: module for key, module in scores.modules.items() if key != (2, "attention")}
    with pytest.raises(InputError, match="Layer 2 has no attention left"):
        uniform(ScoreTable(bare, "newton", 0.5, "table", "abc", scores.parameters), 0.3)


def test_paper_printed_counts_units_in_every_layer():
    plan = uniform(table(), 0.25, allocation="paper_printed")
    heads, channels = counts(plan)
    assert 8 - heads + 60 - channels == 17
