"""How many modules or layers go as a whole, against all choices there are."""

import numpy as np
import pytest
from architectures import deep_model, random_ids, random_scores

from numprune import InputError, ModuleKey, Recipe, allocate, calibrate, choose_depth, prune, with_depth
from numprune.plan.presets import method_of, preset
from numprune.scoring import ModuleScores, ScoreTable
from numprune.scoring.depth import DepthScores


def prices(model, *, heads=3.0, channels=3.0, seed=0):
    """Random prices, gamma distributed around these means."""
    rng, modules = np.random.default_rng(seed), {}
    for block in model.blocks:
        mean = heads if block.key.kind == "attention" else channels
        units = rng.gamma(2.0, mean / 2, block.units)
        modules[block.key] = ModuleScores(units, np.repeat(units, block.width), block.cost, block.remainder)
    return ScoreTable(modules, "fisher", 0.5, model.name, model.fingerprint(), model.parameters, model.beside)


def depth_of(model, losses, whole="modules", scorer="loss"):
    keys = [ModuleKey(layer, kind) for layer in (2, 1, 3) for kind in ("attention", "mlp")]
    size = 1 if whole == "modules" else 2
    gone = tuple(tuple(sorted(keys[: size * n])) for n in range(len(losses)))
    loss = np.array(losses) if scorer == "loss" else None
    return DepthScores(scorer, whole, model.fingerprint(), gone, loss, None, 100)


@pytest.fixture(scope="module")
def model():
    return deep_model("llama")


def predicted(scores, plan, drop):
    """What the units that go beside those modules add, summed here."""
    lost = 0.0
    for key, module in scores.modules.items():
        if key not in drop:
            lost += module.units[plan.removed(key)].sum() * module.cost
    return lost / 1e6


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("losses", [(0, 1e-3, 2e-3, 4e-3, 8e-3), (0, 1e-4, 3e-4, 5e-4, 6e-4), (0, 9, 10, 11, 12)])
def test_as_many_go_as_make_the_least_of_both_losses(model, ratio, losses):
    scores, depth = prices(model), depth_of(model, losses)
    recipe = Recipe(ratio=ratio, scorer="fisher", depth="modules")
    chosen = choose_depth(scores, depth, recipe)
    totals = {}
    for gone, loss in zip(depth.gone, losses, strict=True):
        plan = allocate(scores, recipe.replace(drop=gone))
        if plan.ratio_reached <= ratio + 0.01:
            totals[gone] = loss + predicted(scores, plan, gone)
    assert chosen.drop == min(totals, key=totals.get)
    assert chosen.replace(drop=()) == recipe
    plan = allocate(scores, chosen)
    assert all(plan.keep[key] == () for key in chosen.drop)
    assert abs(plan.ratio_reached - ratio) * scores.prunable_parameters <= max(plan.costs.values())


def test_cheap_modules_go_and_dear_ones_stay(model):
    scores, recipe = prices(model), Recipe(ratio=0.3, scorer="fisher", depth="modules")
    assert len(choose_depth(scores, depth_of(model, (0, 1e-9, 2e-9)), recipe).drop) == 2
    assert choose_depth(scores, depth_of(model, (0, 10, 20)), recipe).drop == ()


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.45, 0.75])
def test_alone_as_many_layers_go_as_come_nearest_to_the_ratio(model, ratio):
    scores = random_scores(model)
    depth = depth_of(model, (0, 1, 2, 3), whole="layers", scorer="influence")
    recipe = Recipe(ratio=ratio, depth="layers", depth_scorer="influence", allocation="none", compensation="none")
    chosen = choose_depth(scores, depth, recipe)
    plan = allocate(scores, chosen)
    assert len(plan.gone) == round(ratio * 4)
    assert set(plan.gone) <= {1, 2, 3}
    assert plan.ratio_reached == pytest.approx(len(plan.gone) / 4)
    untouched = [len(plan.keep[key]) == plan.units[key] for key in plan.keep if key not in chosen.drop]
    assert all(untouched)
    if abs(ratio * 4 - round(ratio * 4)) > 0.1:
        assert any("What goes as a whole, or was set by hand, is" in note for note in plan.notes)


def test_modules_that_are_set_by_hand_do_not_go_as_a_whole(model):
    scores = prices(model)
    for whole, kept in (("modules", {"2.mlp"}), ("layers", {"2.mlp", "2.attention"})):
        depth = depth_of(model, (0, 1e-9, 2e-9, 3e-9), whole=whole)
        recipe = Recipe(ratio=0.5, scorer="fisher", depth=whole, ratios={"2.mlp": 0.0})
        drop = {str(key) for key in choose_depth(scores, depth, recipe).drop}
        assert drop
        assert not drop & kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": "layers"}, "The recipe has depth layers by loss and these scores are of modules by loss"),
        ({"depth": "none"}, "The recipe has depth none by loss"),
        ({"scorer": "newton"}, "Units by newton and modules by loss are not compared"),
    ],
)
def test_what_cannot_be_compared_is_refused(model, changes, message):
    recipe = Recipe(ratio=0.3, scorer="fisher", depth="modules").replace(**changes)
    scores = prices(model) if recipe.scorer == "fisher" else random_scores(model)
    with pytest.raises(InputError, match=message):
        choose_depth(scores, depth_of(model, (0, 1)), recipe)
    other = DepthScores("loss", "modules", "another", ((),), np.zeros(1), None, 1)
    with pytest.raises(InputError, match="depth scores are of another model"):
        choose_depth(prices(model), other, Recipe(ratio=0.3, scorer="fisher", depth="modules"))


def test_a_recipe_carries_out_what_was_chosen_and_chooses_anew_at_another_ratio(model):
    stats = calibrate(model, random_ids(6, 16, seed=3), samples=6, sequence_length=16)
    recipe = preset("drop").applied(Recipe(ratio=0.3))
    scores = random_scores(model, scorer="magnitude")
    chosen = with_depth(model, stats, scores, recipe)
    assert chosen.drop
    assert method_of(chosen) == "drop"
    assert with_depth(model, stats, scores, chosen) is chosen
    again = Recipe.from_json(prune(model, allocate(scores, chosen), stats).recipe.to_json())
    assert (again.depth, again.drop) == ("modules", chosen.drop)
    assert chosen.at(0.6).drop == ()
    assert len(with_depth(model, stats, scores, chosen.at(0.6)).drop) > len(chosen.drop)
    # What was chosen goes with the method, what was dropped by hand stays.
    assert preset("paper").applied(chosen).drop == ()
    by_hand = Recipe(drop=("1",))
    assert preset("paper").applied(by_hand).drop == by_hand.drop
    assert by_hand.at(0.5).drop == by_hand.drop
