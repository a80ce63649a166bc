import numpy as np
import pytest
import torch
from architectures import random_ids, tiny_model

from numprune import SCORERS, InputError, ModuleKey, Recipe, calibrate, check_scorer, score, scorer
from numprune.scoring.newton import numerical_score


def test_a_unit_scores_the_mean_of_its_channels(model, stats):
    table = score(model, stats)
    assert list(table.modules) == [block.key for block in model.blocks]
    for block in model.blocks:
        module = table.modules[block.key]
        assert module.units.shape == (block.units,)
        assert module.channels.shape == (block.units * block.width,)
        assert module.units.dtype == module.channels.dtype == np.float64
        for unit in range(block.units):
            channels = module.channels[unit * block.width : (unit + 1) * block.width]
            assert module.units[unit] == pytest.approx(np.mean(channels), rel=1e-12)


def test_scores_are_those_of_the_formula_on_the_scaled_gram(model, stats):
    table = score(model, stats, ratio=0.3)
    for block in model.blocks:
        gram = stats.modules[block.key].gram
        expected = numerical_score(block.last.weight, gram / gram.diagonal().sum(), ratio=0.3)
        np.testing.assert_allclose(table.modules[block.key].channels, expected.numpy(), rtol=1e-9)


def test_scores_do_not_depend_on_the_scale_of_the_activations(model, stats):
    before = score(model, stats)
    for module in stats.modules.values():
        module.gram *= 1e4
    after = score(model, stats)
    for key in before.modules:
        np.testing.assert_allclose(after.modules[key].channels, before.modules[key].channels, rtol=1e-6)


def test_closed_form_and_loop_choose_the_same_units(model, stats):
    closed, loop = (score(model, stats, scorer=name) for name in ("newton", "newton_loop"))
    for key in closed.modules:
        np.testing.assert_allclose(closed.modules[key].units, loop.modules[key].units, rtol=1e-6)


def test_boxed_scores_stay_in_the_box(model, stats):
    for module in score(model, stats, scorer="newton_boxed").modules.values():
        assert module.channels.min() >= 0
        assert module.channels.max() <= 1


def test_table_knows_the_model(model, stats):
    table = score(model, stats, ratio=0.25)
    assert (table.scorer, table.ratio, table.model) == ("newton", 0.25, model.name)
    assert table.fingerprint == model.fingerprint() == stats.fingerprint
    assert table.parameters == model.parameters
    assert table.prunable_parameters == model.prunable_parameters


@pytest.mark.parametrize("name", ["newton", "newton_loop", "newton_boxed"])
def test_a_unit_that_writes_nothing_scores_lowest(model, name):
    for block in model.blocks:
        block.last.weight[:, block.channels([1])] = 0
    stats = calibrate(model, random_ids(8, 32), samples=8, sequence_length=32)
    for module in score(model, stats, scorer=name).modules.values():
        assert module.units.argmin() == 1
        assert module.units[1] < 0


def test_a_scorer_of_ones_own_is_ten_lines(model, stats, monkeypatch):
    # Takes the name away again after the test.
    monkeypatch.setitem(SCORERS, "magnitude-for-this-test", None)
    seen = []

    @scorer("magnitude-for-this-test")
    def magnitude(weight, stats, *, ratio, key):
        seen.append((stats.tokens, ratio, key.layer))
        return weight.norm(dim=0)

    table = score(model, stats, scorer="magnitude-for-this-test", ratio=0.2)
    assert seen == [(256, 0.2, layer) for layer in (0, 0, 1, 1)]
    block = model.blocks[1]
    expected = [float(block.last.weight[:, channel].norm()) for channel in range(24)]
    np.testing.assert_allclose(table.modules[block.key].units, expected, rtol=1e-6)
    assert Recipe(scorer="magnitude-for-this-test").scorer == "magnitude-for-this-test"


def test_progress_names_the_modules(model, stats):
    calls = []
    score(model, stats, progress=lambda *call: calls.append(call))
    assert calls[0] == (1, 4, "scoring 0.attention")
    assert calls[-1] == (4, 4, "scoring 1.mlp")


@pytest.mark.parametrize("name", ["", "adam"])
def test_an_unknown_scorer_is_refused(model, stats, name):
    says = f"scorer '{name}' is not known; use {', '.join(SCORERS)}"
    with pytest.raises(InputError, match=says):
        score(model, stats, scorer=name)
    with pytest.raises(InputError, match=says):
        check_scorer(name)


def test_a_recipe_may_name_a_scorer_that_is_not_loaded_yet():
    assert Recipe(scorer="adam").scorer == "adam"


@pytest.mark.parametrize("ratio", [1.0, -0.1, float("nan")])
def test_a_ratio_out_of_range_is_refused(model, stats, ratio):
    with pytest.raises(InputError, match="give a number from 0 up to but not including 1"):
        score(model, stats, ratio=ratio)


def test_statistics_of_another_model_are_refused(stats):
    with pytest.raises(InputError, match="statistics belong to another model than tiny llama-gqa-tied; make them"):
        score(tiny_model("llama-gqa-tied", seed=1), stats)


def test_scoring_leaves_statistics_and_weights_alone(model, stats, dense_state):
    grams = {key: module.gram.clone() for key, module in stats.modules.items()}
    for name in SCORERS:
        score(model, stats, scorer=name)
    assert all(torch.equal(stats.modules[key].gram, grams[key]) for key in grams)
    assert all(torch.equal(tensor, dense_state[name]) for name, tensor in model.module.state_dict().items())


def test_table_as_data_frame(model, stats):
    frame = score(model, stats).to_pandas()
    assert len(frame) == 2 * (4 + 24)
    assert frame["rank"].tolist() == frame["score"].rank(method="first").sub(1).astype(int).tolist()
    row = frame[(frame["layer"] == 1) & (frame["module"] == "mlp") & (frame["unit"] == 3)].iloc[0]
    assert row["score"] == score(model, stats).modules[ModuleKey(1, "mlp")].units[3]
    assert row["parameters"] == 3 * 32
