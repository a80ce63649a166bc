"""`numprune score --out FILE.safetensors`, and the recipe that is made by the file and carried out by the model."""

import json

import pytest
import torch

import numprune
from numprune import Recipe, allocate

MODEL = "tiny-stories"
SMALL = ("--samples", "4", "--sequence-length", "64")


@pytest.fixture
def file(run, tmp_path):
    path = tmp_path / "scores.safetensors"
    assert run("score", MODEL, "--method", "fisher,newton", *SMALL, "--out", path)[0] == 0
    return path


def test_the_file_has_all_methods_and_the_model_without_its_weights(file):
    found = numprune.read_score_file(file)
    assert list(found.tables) == ["fisher", "newton"]
    assert found.calibration == numprune.CalibrationRecipe("self", 4, 64)
    model = numprune.load(MODEL)
    assert (found.outline.parameters, found.outline.bytes) == (model.parameters, model.bytes)
    assert file.stat().st_size < 200_000


def test_a_recipe_made_by_the_file_is_carried_out_to_the_unit(file, run, tmp_path):
    found = numprune.read_score_file(file)
    recipe = Recipe(
        model=MODEL,
        fingerprint=found.outline.fingerprint,
        calibration=found.calibration,
        scorer="fisher",
        ratio=0.35,
        ratios={"3.mlp": 0.5},
        compensation="none",
    )
    plan = allocate(found.tables["fisher"], recipe)
    assert len({len(kept) for kept in plan.keep.values()}) > 4
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert run("prune", MODEL, "--recipe", tmp_path / "recipe.json", "--out", tmp_path / "pruned")[0] == 0
    dense, pruned = numprune.load(MODEL), numprune.load(tmp_path / "pruned")
    left = {block.key: block for block in pruned.blocks}
    for block in dense.blocks:
        kept = plan.keep[block.key]
        # Without compensation every kept column is the dense one's: other units would have other numbers.
        assert torch.equal(left[block.key].last.weight, block.last.weight[:, block.channels(kept)]), block.key
    assert found.outline.sizes(plan).parameters == pruned.parameters


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--method", "fisher,newton", "--out", "scores.csv"), "names 2 methods"),
        (("--method", "fisher,fisher", "--out", "s.safetensors"), "each method once"),
        (("--method", "fisher,", "--out", "s.safetensors"), "each method once"),
        (("--method", "fisher,best_of_all", "--out", "s.safetensors"), "best_of_all"),
    ],
)
def test_methods_that_cannot_be_kept_are_refused_before_the_model_is_loaded(run, monkeypatch, flags, says):
    monkeypatch.setattr(numprune, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    code, out, error = run("score", MODEL, *flags)
    assert (code, out) == (2, "")
    assert says in error


def test_json_still_describes_the_first_method(run, tmp_path):
    path = tmp_path / "s.safetensors"
    code, out, _ = run("score", MODEL, "--method", "magnitude,random", *SMALL, "--out", path, "--json")
    assert (code, json.loads(out)["method"]) == (0, "magnitude")


@pytest.mark.parametrize("data", [None, b"", b"PK"])
def test_serve_refuses_what_is_no_file_of_scores(run, tmp_path, data):
    path = tmp_path / "s.safetensors"
    if data is not None:
        path.write_bytes(data)
    code, out, error = run("serve", "--scores", path)
    assert (code, out) == (2, "")
    assert "cannot be read" in error
    assert error.count("\n") == 1
