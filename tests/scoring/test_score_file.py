import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import numprune
from numprune import CalibrationRecipe, InputError, ModuleKey, Recipe, ScoreTable, allocate
from numprune.scoring import ModuleScores
from numprune.scoring.score_file import shipped_file

SOURCE = CalibrationRecipe("self", 8, 32, 0)
DEFAULTS = numprune.CalibrationRecipe()


def same(first, second):
    assert dataclasses.replace(first, modules={}).__dict__ == dataclasses.replace(second, modules={}).__dict__
    assert list(first.modules) == list(second.modules)
    for key, module in first.modules.items():
        other = second.modules[key]
        assert (module.cost, module.remainder, module.width) == (other.cost, other.remainder, other.width)
        assert np.array_equal(module.units, other.units)
        assert np.array_equal(module.channels, other.channels)
        assert module.units.dtype == np.float64


@pytest.mark.parametrize("scorer", ["newton", "fisher"])
def test_what_is_read_is_what_was_written(model, stats, tmp_path, scorer):
    scores = numprune.score(model, stats, scorer=scorer)
    numprune.write_scores(tmp_path / "scores.safetensors", scores, SOURCE)
    again, source = numprune.read_scores(tmp_path / "scores.safetensors")
    same(scores, again)
    assert source == SOURCE
    recipe = Recipe(scorer=scorer, ratio=0.4)
    assert allocate(again, recipe) == allocate(scores, recipe)


def test_channels_are_written_only_where_they_say_more_than_their_units(tmp_path):
    units = np.array([1.0, 2.0])
    modules = {
        ModuleKey(0, "attention"): ModuleScores(units, np.array([0.0, 2.0, 2.0, 2.0]), 4, 1),
        ModuleKey(0, "mlp"): ModuleScores(units, np.repeat(units, 3), 5),
    }
    scores = ScoreTable(modules, "newton", 0.5, "table", "abc", 100)
    numprune.write_scores(tmp_path / "scores.safetensors", scores, SOURCE)
    with safe_open(tmp_path / "scores.safetensors", framework="np") as file:
        assert set(file.keys()) == {"newton/0.attention", "newton/0.attention.channels", "newton/0.mlp"}
    same(scores, numprune.read_scores(tmp_path / "scores.safetensors")[0])


def damaged(tmp_path, what):
    path = tmp_path / "scores.safetensors"
    scores = ScoreTable({ModuleKey(0, "mlp"): ModuleScores(np.ones(3), np.ones(3), 5)}, "fisher", 0.5, "m", "abc", 15)
    numprune.write_scores(path, scores, SOURCE)
    if what == "cut short":
        path.write_bytes(path.read_bytes()[:-5])
    elif what == "missing":
        path.unlink()
    else:
        with safe_open(path, framework="np") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        about = json.loads(metadata["about"])
        if what == "other format":
            metadata["format"] = "numprune scores 3"
        elif what == "not finite":
            tensors["fisher/0.mlp"][1] = np.nan
        elif what == "another shape":
            about["modules"]["0.mlp"]["width"] = 2
            tensors["fisher/0.mlp.channels"] = np.ones(5)
        elif what == "module without scores":
            about["modules"]["1.mlp"] = about["modules"]["0.mlp"]
        elif what == "unknown entry":
            about["colour"] = "red"
        save_file(tensors, path, {**metadata, "about": json.dumps(about)})
    return path


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("cut short", "cannot be read"),
        ("missing", "cannot be read"),
        ("other format", "holds no scores that this numprune reads"),
        ("not finite", "0.mlp has a score that is NaN or infinite"),
        ("another shape", "0.mlp has 5 channels for 3 units of 2"),
        ("module without scores", "cannot be read"),
        ("unknown entry", "colour"),
    ],
)
def test_damaged_files_are_refused(tmp_path, what, says):
    with pytest.raises(InputError, match=says):
        numprune.read_scores(damaged(tmp_path, what))


def test_weights_are_not_scores():
    with pytest.raises(InputError, match="holds no scores"):
        numprune.read_scores(shipped_file("tiny-stories", "newton").with_name("model.safetensors"))


@pytest.fixture(scope="module", params=numprune.embedded_models())
def embedded(request):
    model = numprune.load(request.param, device="cpu", dtype="float32")
    stats = numprune.calibrate(model, DEFAULTS.data, samples=DEFAULTS.samples, sequence_length=model.maximum_length)
    return model, stats


@pytest.mark.parametrize("method", ["paper", numprune.DEFAULT_PRESET])
def test_what_ships_is_what_scoring_gives(embedded, method):
    """assets/scripts/score_models.py writes it anew after training."""
    model, stats = embedded
    recipe = numprune.preset(method).applied(Recipe())
    shipped = numprune.shipped_scores(model, recipe.scorer, DEFAULTS)
    computed = numprune.score(model, stats, scorer=recipe.scorer)
    assert numprune.read_scores(shipped_file(model.name, recipe.scorer))[1] == stats.source
    assert dataclasses.replace(shipped, modules={}).__dict__ == dataclasses.replace(computed, modules={}).__dict__
    for key, module in computed.modules.items():
        ours = shipped.modules[key]
        assert (ours.cost, ours.remainder, ours.width) == (module.cost, module.remainder, module.width)
        # Another machine's matrix products round otherwise, and the greedy order may turn where two units are equal.
        close = np.isclose(ours.units, module.units, rtol=1e-3, atol=1e-9)
        assert close.mean() > 0.99, f"{key}: {np.abs(ours.units / module.units - 1).max():.1e}"
    for ratio in (0.1, 0.3, 0.5):
        plans = [allocate(table, recipe.replace(ratio=ratio)) for table in (shipped, computed)]
        moved = sum(len(set(plans[0].keep[key]) ^ set(plans[1].keep[key])) for key in plans[0].keep)
        assert moved <= 0.005 * sum(plans[0].units.values())


def test_scores_ship_for_one_calibration_of_one_model_only(embedded, monkeypatch, tmp_path):
    model, _ = embedded
    assert numprune.shipped_scores(model, "fisher", DEFAULTS) is not None
    for other in ({"samples": 64}, {"seed": 1}, {"data": "wikitext2"}, {"sequence_length": 16}):
        assert numprune.shipped_scores(model, "fisher", dataclasses.replace(DEFAULTS, **other)) is None
    assert numprune.shipped_scores(model, "random", DEFAULTS) is None
    assert numprune.shipped_scores(dataclasses.replace(model, name="a/b"), "fisher", DEFAULTS) is None
    with torch.no_grad():
        weight = next(model.module.parameters())
        kept = weight.clone()
        weight.mul_(1.5)
    assert numprune.shipped_scores(model, "fisher", DEFAULTS) is None
    with torch.no_grad():
        weight.copy_(kept)
    assert numprune.shipped_scores(model, "fisher", DEFAULTS) is not None


def test_scores_of_float32_do_not_pass_for_those_of_another_type():
    model = numprune.load("tiny-stories", device="cpu", dtype="bfloat16")
    assert numprune.shipped_scores(model, "fisher", DEFAULTS) is None
