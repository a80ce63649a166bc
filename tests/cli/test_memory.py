"""`numprune prune --memory`: a model that does not fit is pruned layer by layer, by the same command."""

import json

import pytest

import numprune
from numprune import InputError
from numprune.layerwise import memory_of

STORY = "the cat and the dog sat on a mat and then the hen ran to the barn. " * 40


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_text(STORY)
    return tmp_path / "a.txt"


def command(tiny, text, out, *flags):
    argv = ["prune", tiny, "--calibration", text, "--samples", 4, "--sequence-length", 16, "--device", "cpu"]
    return [*argv, "--out", out, *flags]


@pytest.mark.parametrize(("preset", "memory"), [("paper", "130K"), ("balanced", "300K")])
def test_a_model_that_does_not_fit_is_pruned_layer_by_layer(run, tiny, tmp_path, text, preset, memory):
    by = ("--preset", preset, "--json")
    code, whole, err = run(*command(tiny, text, tmp_path / "whole", *by))
    assert code == 0, err
    code, layers, err = run(*command(tiny, text, tmp_path / "layers", *by, "--memory", memory))
    assert code == 0, err
    assert "Pruned layer by layer: as a whole it takes about" in err
    whole, layers = json.loads(whole), json.loads(layers)
    assert layers["recipe"] == whole["recipe"]
    for name in ("parameters_before", "parameters_after", "bytes_before", "bytes_after", "ratio_reached"):
        assert layers["report"][name] == whole["report"][name]
    assert layers["mean_error_after"] == pytest.approx(whole["mean_error_after"], rel=1e-4)
    first, second = (numprune.load(tmp_path / each, device="cpu") for each in ("whole", "layers"))
    assert first.units() == second.units()
    assert not (tmp_path / "layers.partial").exists()
    # The recipe it wrote gives the same model again, held in memory.
    code, _, err = run("prune", "--recipe", tmp_path / "layers/recipe.json", "--out", tmp_path / "again", "--quiet")
    assert code == 0, err
    assert numprune.load(tmp_path / "again", device="cpu").units() == first.units()


def test_a_model_that_fits_is_held(run, tiny, tmp_path, text):
    code, _, err = run(*command(tiny, text, tmp_path / "out", "--preset", "paper", "--memory", "2G"))
    assert code == 0, err
    assert "layer by layer" not in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ("--memory", "20K", "--preset", "paper"),
            "Pruning layer by layer takes about 125 kB and 20 kB are allowed",
        ),
        (
            ("--memory", "130K", "--scorer", "taylor"),
            "needs the whole model in memory; give --preset balanced or paper",
        ),
        (("--memory", "130K", "--preset", "paper", "--suggest"), "and it does not fit; leave --suggest out"),
        (("--memory", "130K", "--preset", "paper", "--healing", 3), "Healing needs the whole model in memory"),
        (("--memory", "much"), "Memory is 'much'; give auto, or bytes such as 24G or 800M"),
        (("--memory", "-1"), "Memory is '-1'"),
        (("--memory", ""), "Memory is ''"),
        (("--memory", "inf"), "Memory is 'inf'"),
        (("--memory", "nan"), "Memory is 'nan'"),
    ],
)
def test_what_cannot_be_done_in_it_is_refused(run, tiny, tmp_path, text, flags, says):
    code, out, err = run(*command(tiny, text, tmp_path / "out", *flags))
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("text", "count"), [("auto", None), ("24G", 24 * 10**9), ("1.5g", 15 * 10**8), ("800MB", 8 * 10**8), ("4096", 4096)]
)
def test_bytes_as_people_write_them(text, count):
    assert memory_of(text) == count


def test_no_bytes_are_refused():
    with pytest.raises(InputError, match="Memory is '0'"):
        memory_of("0")
