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
    assert "Done layer by layer: as a whole it takes about" in err
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


def test_a_model_that_does_not_fit_is_scored_layer_by_layer(run, tiny, tmp_path, text):
    argv = ["score", tiny, "--calibration", text, "--samples", 4, "--sequence-length", 16, "--device", "cpu"]
    argv += ["--method", "fisher,newton,flap"]
    for name, memory in (("whole", "2G"), ("layers", "240K")):
        code, _, err = run(*argv, "--out", tmp_path / f"{name}.safetensors", "--memory", memory)
        assert code == 0, err
        assert ("Done layer by layer: as a whole it takes about" in err) == (name == "layers")
    whole, layers = (numprune.read_score_file(tmp_path / f"{name}.safetensors") for name in ("whole", "layers"))
    assert layers.calibration == whole.calibration
    assert layers.outline.fingerprint == whole.outline.fingerprint
    assert list(layers.tables) == list(whole.tables) == ["fisher", "newton", "flap"]
    for name, table in whole.tables.items():
        assert list(layers.tables[name].modules) == list(table.modules)
        for key, module in table.modules.items():
            assert layers.tables[name].modules[key].units == pytest.approx(module.units, rel=1e-3, abs=1e-6)
    assert not [file for file in tmp_path.iterdir() if file.suffix == ".partial"]
    code, out, err = run(*argv[:-1], "flap", "--against", "newton", "--memory", "200K", "--json")
    assert code == 0, err
    assert json.loads(out)["modules"][0]["spearman"] == pytest.approx(
        json.loads(run(*argv[:-1], "flap", "--against", "newton", "--json")[1])["modules"][0]["spearman"], abs=1e-6
    )


def test_scores_that_need_the_whole_model_are_refused(run, tiny, tmp_path, text):
    argv = ["score", tiny, "--calibration", text, "--samples", 4, "--sequence-length", 16, "--memory", "150K"]
    for methods in ("taylor", "flap,taylor"):
        code, out, err = run(*argv, "--method", methods, "--out", tmp_path / "s.safetensors")
        assert (code, out) == (2, "")
        assert "Scorer taylor needs the whole model in memory" in err
        assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_stopped_scoring_goes_on(tiny, tmp_path, text, monkeypatch):
    from numprune.layerwise import score_layerwise, scores
    from numprune.plan.recipe import CalibrationRecipe

    model = numprune.load(tiny, device="cpu", dtype="checkpoint")
    asked = (model, ["flap", "fisher"], CalibrationRecipe(str(text), 4, 16))
    straight, _, _ = score_layerwise(*asked, tmp_path / "straight")
    price = scores.prices

    def stopped(block, *rest, **more):
        if block.key.layer == 0:
            raise numprune.Cancelled("stopped")
        return price(block, *rest, **more)

    monkeypatch.setattr(scores, "prices", stopped)
    with pytest.raises(numprune.Cancelled):
        score_layerwise(*asked, tmp_path / "out")
    # What is scored needs its moments no longer.
    assert [file.name for file in sorted((tmp_path / "out.partial").glob("moments-*"))] == ["moments-00000.safetensors"]
    monkeypatch.setattr(scores, "prices", price)
    again, _, _ = score_layerwise(*asked, tmp_path / "out")
    for name, table in straight.items():
        for key, module in table.modules.items():
            assert (again[name].modules[key].units == module.units).all()
    assert not (tmp_path / "out.partial").exists()
