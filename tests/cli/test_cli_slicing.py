"""`--preset slicegpt` and `--swaps` from the command line."""

import csv
import json

import pytest
from safetensors.torch import load_file

import numprune

MODEL = "tiny-stories"
SMALL = ("--samples", "4", "--sequence-length", "64", "--device", "cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    animals = ["fox", "bird", "cat", "dog", "frog", "bear", "duck", "mouse"]
    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    stories = [f"Once upon a time there was a little {animal}. The {animal} ran to the park." for animal in animals]
    path.write_text("\n".join(json.dumps({"text": story}) for story in stories * 3))
    return path


@pytest.mark.parametrize("flags", [("--preset", "slicegpt"), ("--preset", "osscar"), ("--swaps", "3")])
def test_a_recipe_repeats_the_same_bits(run, tiny, text, tmp_path, flags):
    code, out, err = run("prune", tiny, "--calibration", text, *SMALL, *flags, "--out", tmp_path / "first")
    assert code == 0, err
    assert ("mean error" in out) == ("slicegpt" not in flags)
    assert (
        run("prune", "--recipe", tmp_path / "first" / "recipe.json", "--device", "cpu", "--out", tmp_path / "again")[0]
        == 0
    )
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again"))
    assert first.keys() == again.keys()
    assert all((first[name] == again[name]).all() for name in first)
    assert ("model.layers.0.mlp_shortcut.weight" in first) == ("slicegpt" in flags)


def test_units_and_slicegpt_do_not_mix(run, text, tmp_path):
    flags = ("--preset", "slicegpt", "--set", "3.mlp=0.5")
    code, out, err = run("prune", MODEL, "--calibration", text, *SMALL, *flags, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "removes no units" in err
    flags = ("--preset", "slicegpt", "--suggest")
    code, _, err = run("prune", MODEL, "--calibration", text, *SMALL, *flags, "--out", tmp_path / "out")
    assert code == 2
    assert "--suggest" in err
    code, _, err = run("prune", "tiny-images", "--preset", "slicegpt", "--device", "cpu", "--out", tmp_path / "out")
    assert code == 3
    assert "use another method" in err
    assert not (tmp_path / "out").exists()


def test_slicegpt_is_a_method_of_the_sweep(run, text, tmp_path):
    out = tmp_path / "cells.csv"
    flags = ("--methods", "slicegpt,random", "--ratios", "0.3", "--repetitions", "0", "--out", out)
    code, _, err = run("sweep", MODEL, "--calibration", text, "--data", text, *SMALL, *flags)
    assert code == 0, err
    dense, sliced, random = csv.DictReader(out.open())
    assert [row["method"] for row in (dense, sliced, random)] == ["dense", "slicegpt", "random"]
    assert float(sliced["reached"]) == pytest.approx(0.3, abs=0.004)
    assert int(sliced["parameters"]) == pytest.approx(int(random["parameters"]), rel=0.005)
    assert float(sliced["nll"]) > float(dense["nll"])
    code, _, err = run("sweep", "tiny-images", "--methods", "slicegpt", "--ratios", "0.3", "--out", tmp_path / "no.csv")
    assert code == 3
    assert "use another method" in err


def test_all_methods_are_those_that_can_prune_the_model():
    from numprune.evaluation.methods import methods_for

    assert methods_for(numprune.load(MODEL, device="cpu")) == list(numprune.METHODS)
    images = methods_for(numprune.load("tiny-images", device="cpu"))
    assert images == [name for name in numprune.METHODS if name != "slicegpt"]
