"""What goes for a speed-up, against every choice there is."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from architectures import deep_model

from numprune import InputError, Latency, ModuleKey, Recipe, allocate, check_speedup, choose_speedup
from numprune.allocation.speedup import candidates, price_scale
from numprune.plan.presets import method_of, preset
from numprune.scoring import ModuleScores, ScoreTable
from numprune.scoring.depth import DepthScores

HEAD, CHANNELS, ALONE = 3e-4, 2e-4, 5e-4


@pytest.fixture(scope="module")
def model():
    return deep_model("llama", layers=2)


def prices(model, seed=0):
    """Few units, so that all choices can be tried; gamma distributed prices, the same for no two."""
    rng, modules = np.random.default_rng(seed), {}
    for block in model.blocks:
        units = rng.gamma(2.0, 1.5, block.units)
        modules[block.key] = ModuleScores(units, np.repeat(units, block.width), block.cost, block.remainder)
    return ScoreTable(modules, "fisher", 0.5, model.name, model.fingerprint(), model.parameters, model.beside)


def times(scores):
    """A module costs `ALONE`, and then so much for all of its units, rising in proportion."""
    sizes = {key: len(module.units) * module.cost for key, module in scores.modules.items()}
    widths = {}
    for kind, whole in (("attention", HEAD), ("mlp", CHANNELS)):
        size = next(size for key, size in sizes.items() if key.kind == kind)
        units = len(next(module.units for key, module in scores.modules.items() if key.kind == kind))
        widths[kind] = ((0.0, 0.0), (size / units, ALONE + whole / units), (float(size), ALONE + whole))
    return Latency(5e-3, sizes, widths, 1, 64, 3, "cpu", "float32", 2)


def depth_of(model, losses):
    keys = [ModuleKey(1, "mlp"), ModuleKey(0, "attention"), ModuleKey(1, "attention")]
    gone = tuple(tuple(sorted(keys[:n])) for n in range(len(losses)))
    return DepthScores("loss", "modules", model.fingerprint(), gone, np.array(losses), None, 100)


def recipe_for(speedup, **changes):
    return preset("fast").applied(Recipe(speedup=speedup)).replace(**changes)


def seconds(latency, counts, units):
    """The time of a token, summed here: by how many units every module keeps."""
    total = latency.dense
    for key, kept in counts.items():
        whole = ALONE + (HEAD if key.kind == "attention" else CHANNELS)
        part = (whole - ALONE) * kept / units[key]
        total -= whole - (ALONE + part if kept else 0.0)
    return total


def counts_of(plan):
    return {key: len(kept) for key, kept in plan.keep.items()}


@pytest.mark.parametrize("speedup", [1.05, 1.15, 1.3, 1.6])
@pytest.mark.parametrize("losses", [(0, 1e-9, 2e-9), (0, 2e-3, 9e-3, 2e-2), (0, 9, 10)])
def test_no_choice_that_is_as_fast_loses_less(model, speedup, losses):
    """Against all counts of heads and, since an even price of time makes the best of convex parts only, up to what a
    step of one module is worth."""
    scores = prices(model)
    latency, depth = times(scores), depth_of(model, losses)
    chosen = choose_speedup(scores, depth, latency, recipe_for(speedup))
    plan = allocate(scores, chosen)
    units = {key: len(module.units) for key, module in scores.modules.items()}
    due = latency.dense / speedup
    assert seconds(latency, counts_of(plan), units) <= due + 1e-12

    def lost(counts, before):
        return before + sum(
            np.sort(scores.modules[key].units)[: units[key] - kept].sum() * scores.modules[key].cost / 1e6
            for key, kept in counts.items()
        )

    step = max(module.units.max() * module.cost for module in scores.modules.values()) / 1e6
    best = np.inf
    for gone, before in zip(depth.gone, losses, strict=True):
        left = [key for key in units if key not in gone]
        grids = [range(1, units[key] + 1) if key.kind == "attention" else range(1, units[key] + 1, 4) for key in left]
        for kept in itertools.product(*grids):
            counts = dict(zip(left, kept, strict=True))
            if seconds(latency, counts | dict.fromkeys(gone, 0), units) <= due:
                best = min(best, lost(counts, before))
    own = lost({key: len(kept) for key, kept in plan.keep.items() if key not in chosen.drop}, 0.0)
    assert own + losses[depth.gone.index(chosen.drop)] <= best + 2 * step


def test_everything_is_decided_and_recorded(model):
    scores = prices(model)
    recipe = recipe_for(1.4)
    chosen = choose_speedup(scores, depth_of(model, (0, 1e-6, 2e-6)), times(scores), recipe)
    plan = allocate(scores, chosen)
    assert (chosen.suggested, chosen.speedup, len(chosen.drop)) == (True, 1.4, 2)
    assert set(chosen.ratios) | set(chosen.drop) == set(scores.modules)
    assert plan.ratio_reached == pytest.approx(chosen.ratio, abs=1e-9)
    assert Recipe.from_json(chosen.to_json()) == chosen
    assert (method_of(chosen), method_of(recipe)) == ("fast", None)
    assert not plan.notes
    (note,) = allocate(scores, recipe).notes
    assert note.startswith("Nothing is chosen yet for a speed-up of 1.4")
    assert "spends 30% of the parameters" in note


def test_what_is_set_by_hand_stays(model):
    scores = prices(model)
    locks = {ModuleKey(0, "mlp"): 0.25}
    recipe = recipe_for(1.3, ratios=locks, keep={ModuleKey(1, "attention"): (0, 2)})
    plan = allocate(scores, choose_speedup(scores, depth_of(model, (0, 1e-9, 2e-9, 3e-9)), times(scores), recipe))
    assert plan.ratio(ModuleKey(0, "mlp")) == pytest.approx(0.25, abs=0.01)
    assert {0, 2} <= set(plan.keep[ModuleKey(1, "attention")])
    by_hand = recipe_for(1.3, depth="none", drop=["1.mlp"])
    assert choose_speedup(scores, None, times(scores), by_hand).drop == (ModuleKey(1, "mlp"),)


def test_without_whole_modules_only_units_go(model):
    scores = prices(model)
    chosen = choose_speedup(scores, None, times(scores), recipe_for(1.1, depth="none"))
    assert chosen.drop == ()
    assert all(len(kept) for kept in allocate(scores, chosen).keep.values())


def test_more_speed_costs_more_loss(model):
    scores, depth = prices(model), depth_of(model, (0, 1e-3, 5e-3, 2e-2))
    found = [
        min(candidates(scores, depth, times(scores), recipe_for(speedup)), key=lambda each: each.scaled(1.0))
        for speedup in (1.05, 1.2, 1.4, 1.6)
    ]
    assert [each.scaled(1.0) for each in found] == sorted(each.scaled(1.0) for each in found)
    assert [each.seconds for each in found] == sorted((each.seconds for each in found), reverse=True)


class Measured:
    """A trial in which every unit that goes costs so many times its price, and whole modules so many times theirs."""

    def __init__(self, scores, depth, times, fitted=1.0):
        self.scores, self.depth, self.times, self.fitted, self.tried = scores, depth, times, fitted, []

    def dense_loss(self):
        return 2.0

    def loss(self, keep):
        gone = tuple(sorted(key for key, kept in keep.items() if not kept))
        self.tried.append(gone)
        whole = self.depth.loss[self.depth.gone.index(gone)]
        units = sum(
            (module.units.sum() - module.units[list(keep[key])].sum()) * module.cost / 1e6
            for key, module in self.scores.modules.items()
            if keep[key]
        )
        return 2.0 + self.fitted * whole + self.times * units


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0, 30.0])
@pytest.mark.parametrize("fitted", [0.3, 1.0, 2.0])
def test_measured_plans_put_prices_and_whole_modules_on_one_scale(factor, fitted):
    """Where trials say what units and whole modules really cost, no other candidate is better."""
    model = deep_model("llama", layers=6)
    scores = prices(model)
    latency = replace(times(scores), dense=20e-3)
    by_width = [each.units for each in candidates(scores, depth_of(model, (0, 0, 0, 0)), latency, recipe_for(1.12))]
    # So that with prices as they are one module goes, and more or fewer where the scales are others.
    cost = [0, 0.9 * (by_width[0] - by_width[1]), 0, 0]
    cost[2] = cost[1] + 1.5 * (by_width[1] - by_width[2])
    cost[3] = cost[2] + 4 * (by_width[2] - by_width[3])
    depth = depth_of(model, cost)
    trial, recipe = Measured(scores, depth, factor, fitted), recipe_for(1.12)
    found = candidates(scores, depth, latency, recipe)
    really = {each.recipe.drop: each.scaled(factor, fitted) for each in found}
    chosen = choose_speedup(scores, depth, latency, recipe, trial=trial)
    assert really[chosen.drop] == min(really[gone] for gone in trial.tried)
    assert really[chosen.drop] == pytest.approx(min(really.values()))
    assert trial.tried[0] == ()
    assert len(trial.tried) <= 5
    assert len(set(trial.tried)) == len(trial.tried)
    scale = price_scale(Measured(scores, depth, factor, fitted), scores, latency, recipe)
    assert scale == pytest.approx(factor)


def test_a_trial_that_finds_nothing_finite_is_not_taken(model):
    scores, depth = prices(model), depth_of(model, (0, 1e-9, 2e-9))

    class Broken(Measured):
        def loss(self, keep):
            return float("inf") if any(not kept for kept in keep.values()) else super().loss(keep)

    trial = Broken(scores, depth, 1e6)
    chosen = choose_speedup(scores, depth, times(scores), recipe_for(1.25), trial=trial)
    assert trial.tried == [] or chosen.drop == ()


def test_what_cannot_be_reached_or_chosen_is_refused_in_a_sentence(model):
    scores = prices(model)
    latency, depth = times(scores), depth_of(model, (0, 1.0))
    with pytest.raises(InputError, match=r"Decoding 90 times as fast .* reaches 1\.\d\d times on cpu at most"):
        choose_speedup(scores, depth, latency, recipe_for(90))
    with pytest.raises(InputError, match="asks for no speed-up"):
        choose_speedup(scores, depth, latency, Recipe())
    with pytest.raises(InputError, match="of another model"):
        choose_speedup(scores, depth, times(prices(deep_model("llama", layers=3))), recipe_for(1.2))
    other = DepthScores("loss", "modules", "0" * 16, ((),), np.zeros(1), None, 1)
    with pytest.raises(InputError, match="not the losses"):
        choose_speedup(scores, other, latency, recipe_for(1.2))
    for changes, says in (
        ({"scorer": "flap"}, "prices in nats"),
        ({"allocation": "uniform"}, "allocation global"),
        ({"uniform": True}, "leave uniform out"),
        ({"depth": "layers", "depth_scorer": "influence"}, "depth_scorer loss"),
    ):
        with pytest.raises(InputError, match=says):
            check_speedup(recipe_for(1.2, **changes))
    for wrong in (1.0, 0.5, float("nan"), float("inf"), "fast", True, [2]):
        with pytest.raises(InputError, match="speedup is"):
            Recipe(speedup=wrong)
    with pytest.raises(InputError, match="reaches no speed-up"):
        Recipe(speedup=1.5, removal="slicegpt")


def test_a_ratio_ends_a_speedup_and_another_speedup_begins_anew(model):
    scores = prices(model)
    recipe = recipe_for(1.4)
    chosen = choose_speedup(scores, depth_of(model, (0, 1e-6, 2e-6)), times(scores), recipe)
    assert chosen.at(0.2) == recipe.replace(speedup=None, depth="none", ratio=0.2)
    assert chosen.for_speedup(1.2) == recipe.replace(speedup=1.2, ratio=chosen.ratio)
    plain = Recipe(ratios={"0.mlp": 0.5})
    assert plain.for_speedup(1.2).ratios == plain.ratios
    assert "speedup" not in Recipe().to_dict()
