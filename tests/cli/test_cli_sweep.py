import json
from dataclasses import replace

import pytest

import numprune
from numprune import Recipe
from numprune.cli import main
from numprune.evaluation import methods, reproduction
from numprune.evaluation.paper import LLAMA_7B

MODEL = "tiny-stories"
SMALL = ("--samples", "2", "--sequence-length", "64")
QUICK = (*SMALL, "--repetitions", "1", "--prompt-tokens", "4", "--new-tokens", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    animals = ["fox", "bird", "cat", "dog", "frog", "bear", "duck", "mouse"]
    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    stories = [f"Once upon a time there was a little {animal}. The {animal} ran to the park." for animal in animals]
    path.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    return path


@pytest.fixture
def run(capsys):
    """Run `numprune sweep` in this process; returns exit code, stdout and stderr."""

    def call(*argv):
        capsys.readouterr()
        code = main(["sweep", *map(str, argv)])
        return code, *capsys.readouterr()

    return call


def test_json_holds_a_point_per_ratio(run, text):
    argv = (MODEL, "--ratios", "0,0.2,0.5", "--calibration", text, "--data", text, *QUICK, "--json")
    code, out, err = run(*argv)
    assert code == 0, err
    value = json.loads(out)
    model = numprune.load(MODEL, device="cpu")
    assert (value["model"], value["parameters"], value["data"]) == (MODEL, model.parameters, str(text))
    assert value["recipe"]["calibration"] == {
        "data": str(text),
        "samples": 2,
        "sequence_length": 64,
        "seed": 0,
        "bos": True,
    }
    dense, *pruned = value["points"]
    assert (dense["ratio"], dense["reached"]) == (0, 0)
    assert dense["sizes"] == numprune.sizes(model).to_dict()
    assert dense["perplexity"]["perplexity"] == pytest.approx(float(numprune.perplexity(model, text)))
    assert [point["ratio"] for point in pruned] == [0.2, 0.5]
    for point in pruned:
        assert point["reached"] == pytest.approx(point["ratio"], abs=0.01)
        assert point["sizes"]["flops"] < dense["sizes"]["flops"]
        assert point["speed"]["repetitions"] == 1
        assert point["perplexity"]["tokens"] == dense["perplexity"]["tokens"]
    assert value["seconds"] > 0


def test_the_table_has_a_line_per_ratio(run, text):
    code, out, err = run(MODEL, "--ratios", "0,0.4", "--calibration", text, "--data", text, *QUICK)
    assert code == 0, err
    head, *lines = out.splitlines()
    for name in ("ratio", "parameters", "cache bytes/token", "first token ms", "decode tokens/s", "perplexity"):
        assert name in head
    assert [line.split()[0] for line in lines] == ["0", "0.4"]


def test_perplexity_can_be_left_out(run, text):
    argv = (MODEL, "--ratios", "0.3", "--calibration", text, "--no-perplexity", *QUICK)
    code, out, _ = run(*argv, "--json")
    assert code == 0
    value = json.loads(out)
    assert value["data"] is None
    assert value["points"][0]["perplexity"] is None
    assert "perplexity" not in run(*argv)[1]


def test_perplexity_is_that_of_the_held_out_stories_by_default(run, text, monkeypatch):
    monkeypatch.setattr(numprune, "held_out_text", lambda: text)
    code, out, _ = run(MODEL, "--ratios", "0", "--calibration", text, *QUICK, "--json")
    assert code == 0
    assert json.loads(out)["data"] == str(text)


def test_a_recipe_gives_the_settings(run, text, tmp_path):
    recipe = Recipe(ratio=0.9, allocation="uniform", ratios={"3.mlp": 0.6}, round_channels=16)
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    flags = ("--recipe", tmp_path / "recipe.json", "--ratios", "0.3", "--calibration", text, "--no-perplexity")
    code, out, err = run(MODEL, *flags, *QUICK, "--json")
    assert code == 0, err
    value = json.loads(out)
    assert value["recipe"]["allocation"] == "uniform"
    assert value["recipe"]["ratios"] == {"3.mlp": 0.6}
    model = numprune.load(MODEL, device="cpu")
    stats = numprune.calibrate(model, text, samples=2, sequence_length=64)
    plan = numprune.allocate(numprune.score(model, stats), recipe.replace(ratio=0.3))
    assert value["points"][0]["sizes"] == numprune.sizes(model, plan).to_dict()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ratios", "0,x"], "ratios is '0,x'; give numbers such as 0,0.3,0.5"),
        (["--ratios", ""], "ratios is ''"),
        (["--ratios", "0,1"], "1"),
        (["--recipe", "missing.json"], "missing.json"),
        (["--data", "no-such-text"], "no-such-text"),
        (["--new-tokens", "9999"], "ask for fewer"),
        (["--repetitions", "0"], "at least 1"),
    ],
)
def test_wrong_input_is_one_sentence(run, text, flags, says):
    code, out, err = run(MODEL, "--calibration", text, *QUICK, *flags)
    assert code == 2
    assert out == ""
    assert says in err
    assert len(err.splitlines()) == 1


def test_a_recipe_of_another_model_is_refused_before_calibration(run, text, tmp_path, monkeypatch):
    monkeypatch.setattr(numprune, "calibrate_by_recipe", None)
    (tmp_path / "recipe.json").write_text(Recipe(model="other", fingerprint="0" * 16).to_json())
    code, _, err = run(MODEL, "--recipe", tmp_path / "recipe.json", "--calibration", text, *QUICK)
    assert code == 2
    assert "made for other" in err


def test_methods_are_compared_and_a_stopped_run_goes_on(run, text, tmp_path):
    out = tmp_path / "cells.csv"
    argv = (MODEL, "--ratios", "0.3", "--calibration", text, "--data", text, *SMALL, "--device", "cpu")
    argv += ("--repetitions", "0", "--out", out)
    code, first, err = run(*argv, "--methods", "random", "--json")
    assert code == 0, err
    kept = out.read_text().splitlines()
    code, second, err = run(*argv, "--methods", "random,paper", "--seeds", "0,1", "--json")
    assert code == 0, err
    assert out.read_text().splitlines()[: len(kept)] == kept
    places = [(cell["method"], cell["ratio"], cell["seed"]) for cell in json.loads(second)["cells"]]
    assert places == [("dense", 0, 0), ("random", 0.3, 0), ("paper", 0.3, 0), ("random", 0.3, 1), ("paper", 0.3, 1)]
    assert json.loads(first)["cells"] == json.loads(second)["cells"][:2]
    page = (tmp_path / "cells.html").read_text()
    assert "plotly" in page
    assert "excess loss" in page
    assert ", paper" not in page
    assert "wanda_sp" in run("--help")[1]


def test_a_model_of_the_papers_tables_has_its_curves_in_the_page(run, text, tmp_path, monkeypatch):
    config = numprune.load(MODEL, device="cpu").config
    shape = {"hidden_size": config.hidden_size, "num_hidden_layers": config.num_hidden_layers}
    monkeypatch.setattr(reproduction, "LLAMAS", (replace(LLAMA_7B, config=shape),))
    argv = (MODEL, "--ratios", "0.3", "--calibration", text, "--data", text, *SMALL, "--device", "cpu")
    argv += ("--repetitions", "0", "--methods", "random", "--out", tmp_path / "cells.csv")
    code, _, err = run(*argv)
    assert code == 0, err
    page = (tmp_path / "cells.html").read_text()
    assert '"name":"FLAP, paper"' in page
    assert "figures for LLaMA-7B on wikitext2" in page


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--methods", "paper"), "give a .csv file"),
        (("--methods", "mine", "--out", "x.csv"), "preset 'mine' is not known"),
        (("--methods", "paper", "--out", "x.csv", "--seeds", "a"), "seeds is 'a'"),
        (("--methods", "paper", "--out", "x.csv", "--no-perplexity"), "nothing to compare"),
        (("--seeds", "1"), "belong to --methods"),
    ],
)
def test_wrong_flags_of_a_comparison_are_refused(run, argv, says):
    code, _, err = run(MODEL, *argv)
    assert code == 2
    assert says in err


def test_a_comparison_of_image_models_counts_what_the_judge_sees(run, tmp_path):
    argv = ("tiny-images", "--methods", "magnitude", "--ratios", "0.5", "--samples", "4", "--device", "cpu")
    argv += ("--images", "10", "--guidance", "1.5", "--repetitions", "0", "--out", tmp_path / "cells.csv", "--json")
    code, out, err = run(*argv)
    assert code == 0, err
    dense, pruned = json.loads(out)["cells"]
    assert dense["images"] == pruned["images"] == 10
    assert 0 <= pruned["recognised"] <= dense["recognised"] <= 1
    assert pruned["fid"] > dense["fid"]
    assert dense["perplexity"] is None


def test_methods_are_compared_on_as_much_text_as_prune_takes_on_this_device(run, text, tmp_path, monkeypatch):
    seen = []

    def compare(model, methods, ratios, bench, *, recipe, **how):
        seen.append((bench.sequence_length, recipe.calibration.samples, recipe.calibration.sequence_length))
        return compare_methods(model, methods, ratios, bench, recipe=recipe, **how)

    compare_methods = methods.compare_methods
    monkeypatch.setattr(methods, "compare_methods", compare)
    monkeypatch.setattr("numprune.calibration.budget.READ_ON_CPU", 1.0)
    argv = (MODEL, "--ratios", "0.3", "--calibration", text, "--data", text, "--device", "cpu", "--repetitions", "0")
    code, _, err = run(*argv, "--methods", "random", "--out", tmp_path / "a.csv")
    assert code == 0, err
    assert "calibrated on 8 sequences of 128 tokens" in err
    assert seen == [(2048, 8, 128)]
