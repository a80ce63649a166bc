"""Modules and layers that go as a whole, by the command line."""

import json

import pytest

import numprune
from numprune import Recipe
from numprune.cli.entry import build_parser
from numprune.cli.prune import _recipe

MODEL = "tiny-stories"
SMALL = ("--samples", "8", "--sequence-length", "32")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("Once upon a time a little dog saw a big cat. They ran to the park and were very happy. " * 60)
    return path


@pytest.fixture
def prune(run, text, tmp_path):
    """Runs `numprune prune` with more flags; the folder, the exit code and what stood on stderr."""

    def pruned(*flags, name="out"):
        out = tmp_path / name
        code, _, err = run("prune", MODEL, "--calibration", text, *SMALL, *flags, "--out", out)
        return out, code, err

    return pruned


def test_a_layer_and_a_module_are_dropped_by_hand_and_the_recipe_repeats_it(prune, run, tmp_path):
    out, code, err = prune("--ratio", "0.3", "--drop", "2", "--drop", "5.attention", "--preset", "paper")
    assert code == 0, err
    model = numprune.load(str(out), device="cpu")
    assert model.layers == 7
    assert model.origins == (0, 1, 3, 4, 5, 6, 7)
    assert model.units()[numprune.ModuleKey(4, "attention")] == 0
    assert model.recipe.drop == Recipe(drop=("2", "5.attention")).drop
    assert model.report.ratio_reached == pytest.approx(0.3, abs=0.01)
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 7
    assert run("prune", "--recipe", out / "recipe.json", "--out", tmp_path / "again")[0] == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == second


@pytest.mark.parametrize("preset", ["shortgpt", "drop"])
def test_a_method_of_whole_layers_or_modules_leaves_the_others_as_they_are(prune, preset):
    out, code, err = prune("--preset", preset, "--ratio", "0.25")
    assert code == 0, err
    model = numprune.load(str(out), device="cpu")
    assert set(model.units().values()) <= {0, 8, 512}
    assert model.report.ratio_reached == pytest.approx(0.25, abs=0.07)
    if preset == "shortgpt":
        assert model.layers == 6
        assert 0 in model.origins  # whose influence is the largest by far


def test_modules_compete_with_heads_and_channels(prune):
    out, code, err = prune("--depth", "modules", "--ratio", "0.3")
    assert code == 0, err
    recipe = Recipe.read(out / "recipe.json")
    assert recipe.depth == "modules"
    assert numprune.load(str(out), device="cpu").report.ratio_reached == pytest.approx(0.3, abs=0.005)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--drop", "99"), "The recipe drops 99.attention, which tiny-stories does not have"),
        (("--drop", "2", "--drop", "2.mlp"), "The recipe drops 2.mlp twice; name it once"),
        (("--drop", "two"), "'two' does not name a module"),
        (("--drop", "2.head"), "'2.head' does not name a module"),
        (("--drop", "2", "--set", "2.mlp=0.5"), "drops 2.mlp as a whole and names it in ratios too"),
        (("--drop", "2", "--depth", "layers"), "--drop goes by hand and --depth by scores; give one of them"),
        ([f"--drop={layer}" for layer in range(8)], "drops every module of tiny-stories; leave at least"),
        (("--depth", "layers", "--depth-scorer", "influence"), "Units by fisher and layers by influence are not"),
        (("--depth", "modules", "--depth-scorer", "angular", "--allocation", "none"), "is of whole layers and tells"),
        (("--depth", "modules", "--depth-scorer", "depth"), "depth_scorer 'depth' is not known"),
        (("--depth", "modules", "--scorer", "newton"), "Units by newton and modules by loss are not compared"),
        (("--method", "slicegpt", "--drop", "2"), "Method slicegpt removes no units; leave out ratios, drop"),
    ],
)
def test_bad_drops_are_one_sentence_and_nothing_is_written(prune, flags, says):
    out, code, err = prune("--ratio", "0.3", *flags)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert not list(out.parent.glob("out*"))


def test_flags_go_before_what_a_recipe_chose(tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(Recipe(ratio=0.3, depth="modules", drop=("2.mlp",), scorer="fisher").to_json())

    def asked(*flags):
        return _recipe(build_parser().parse_args(["prune", MODEL, "--recipe", str(file), *flags, "--out", "x"]))

    assert [str(key) for key in asked().drop] == ["2.mlp"]
    assert asked("--ratio", "0.4").drop == ()  # chosen anew
    assert (asked("--depth", "none").depth, asked("--depth", "none").drop) == ("none", ())
    by_hand = asked("--drop", "3.mlp")
    assert (by_hand.depth, [str(key) for key in by_hand.drop]) == ("none", ["3.mlp"])
    assert asked("--drop", "").drop == ()


def test_a_speedup_is_chosen_measured_and_repeated_by_its_recipe(prune, run, tmp_path, clock):
    out, code, err = prune("--speedup", "1.25")
    assert code == 0, err
    model = numprune.load(str(out), device="cpu")
    assert "times as fast" in " ".join(model.report.notes)
    assert "1.25 asked for" in " ".join(model.report.notes)
    recipe = model.recipe
    assert (recipe.speedup, recipe.suggested) == (1.25, True)
    assert numprune.preset("fast").applied(recipe).drop == ()
    assert model.report.ratio_reached == pytest.approx(recipe.ratio)
    assert run("prune", "--recipe", out / "recipe.json", "--out", tmp_path / "again")[0] == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again"))
    assert first == second
    # A ratio is another budget.
    code, _, err = run("prune", "--recipe", out / "recipe.json", "--ratio", "0.1", "--out", tmp_path / "ratio")
    assert code == 0, err
    other = numprune.load(str(tmp_path / "ratio"), device="cpu")
    assert (other.recipe.speedup, other.recipe.drop) == (None, ())
    assert other.report.ratio_reached == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--speedup", "1.2", "--ratio", "0.3"), "one of time"),
        (("--preset", "fast", "--ratio", "0.3"), "one of time"),
        (("--speedup", "1.2", "--suggest"), "budget of parameters"),
        (("--speedup", "0.9"), "above 1"),
        (("--speedup", "nan"), "above 1"),
        (("--speedup", "50"), "at most"),
        (("--speedup", "1.2", "--preset", "flap"), "prices in nats"),
        (("--speedup", "1.2", "--preset", "slicegpt"), "no speed-up"),
        (("--speedup", "1.2", "--uniform"), "leave uniform out"),
        (("--speedup", "1.2", "--depth", "layers", "--depth-scorer", "influence"), "depth_scorer loss"),
    ],
)
def test_a_speedup_that_cannot_be_is_refused_in_a_sentence(prune, clock, flags, says):
    out, code, err = prune(*flags)
    assert code == 2
    assert says in err
    assert not out.exists()


def test_bench_latency_measures_and_keeps(run, clock, tmp_path):
    code, out, err = run("bench", "latency", MODEL, "--out", tmp_path / "table.json")
    assert code == 0, err
    assert "ms a token" in out
    assert json.loads((tmp_path / "table.json").read_text())["batch"] == 1
    assert len(list((tmp_path / "cache").glob("latency-*.json"))) == 1
    assert run("bench", "latency")[0] == 2
