import errno
import io
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import PreTrainedModel

import numprune
from numprune import Recipe
from numprune.cli import main
from numprune.cli.entry import COMMANDS, build_parser
from numprune.cli.prune import _recipe
from numprune.plan.recipe import ALLOCATIONS, COMPENSATIONS

MODEL = "tiny-stories"
SMALL = ("--samples", "4", "--sequence-length", "64")
NAMES = [command.__name__.rpartition(".")[2].replace("evaluate", "eval") for command in COMMANDS]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A jsonl file with some two thousand tokens."""
    animals = ["fox", "bird", "cat", "dog", "frog", "bear", "duck", "mouse"]
    stories = [
        f"Once upon a time there was a little {animal}. The {animal} saw a big {other} and wanted to play. "
        f'"Come with me," said the {other}, and they ran to the park. They were very happy.'
        for animal in animals
        for other in animals[:5]
    ]
    path = tmp_path_factory.mktemp("text") / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": story}) for story in stories))
    return path


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, text):
    """A folder written by `numprune prune`, with every kind of decision in its recipe."""
    out = tmp_path_factory.mktemp("pruned") / "small"
    flags = ["--ratio", "0.4", "--set", "3.mlp=0.6", "--keep", "0.attention:1,2", "--prune-units", "1.attention:3"]
    code = main(["prune", MODEL, "--calibration", str(text), *SMALL, "--seed", "5", *flags, "--out", str(out)])
    assert code == 0
    return out


@pytest.fixture
def result(run):
    """Run a command with --json; returns what it printed."""

    def call(*argv):
        code, out, err = run(*argv, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def leftovers(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def change_recipe(folder, target, **changes):
    target.write_text(json.dumps({**json.loads((folder / "recipe.json").read_text()), **changes}))
    return target


# prune


def test_suggested_ratios_are_written_into_the_recipe_and_repeat(result, tiny, text, tmp_path):
    flags = ["--ratio", "0.4", "--calibration", text, *SMALL, "--compensation", "residual"]
    first = result("prune", tiny, *flags, "--suggest", "--out", tmp_path / "first")
    assert len(first["recipe"]["ratios"]) == 5
    assert abs(first["report"]["ratio_reached"] - 0.4) < 0.01
    again = result("prune", "--recipe", tmp_path / "first" / "recipe.json", "--out", tmp_path / "again")
    assert again["recipe"] == first["recipe"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again")]
    assert weights[0] == weights[1]


def test_prune_writes_a_model_its_recipe_and_a_report(pruned, text):
    recipe = Recipe.read(pruned / "recipe.json")
    assert recipe.model == MODEL
    assert recipe.fingerprint == numprune.load(MODEL).fingerprint()
    assert recipe.calibration == numprune.CalibrationRecipe(str(text), samples=4, sequence_length=64, seed=5)
    assert recipe.to_dict()["ratios"] == {"3.mlp": 0.6}
    assert recipe.to_dict()["keep"] == {"0.attention": [1, 2]}
    assert recipe.to_dict()["prune"] == {"1.attention": [3]}
    report = json.loads((pruned / "report.json").read_text())
    model = numprune.load(pruned)
    assert model.parameters == report["parameters_after"] < report["parameters_before"]
    assert report["ratio_reached"] == pytest.approx(0.4, abs=0.01)


def test_prune_prints_what_was_done(run, text, tmp_path):
    code, out, err = run("prune", MODEL, "--calibration", text, *SMALL, "--out", tmp_path / "small")
    assert code == 0
    for word in ("30.00% asked", "reached", "parameters", "bytes", "before compensation (network)", "time"):
        assert word in out
    assert err == "Note: Every sequence of text begins with <s>.\n"


@pytest.mark.parametrize("model", [(), (MODEL,)], ids=["model from the recipe", "model given"])
def test_a_recipe_repeats_the_same_bits(run, pruned, tmp_path, model):
    code, _, err = run("prune", *model, "--recipe", pruned / "recipe.json", "--out", tmp_path / "again")
    assert code == 0, err
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (pruned / "model.safetensors").read_bytes()
    assert (tmp_path / "again" / "recipe.json").read_bytes() == (pruned / "recipe.json").read_bytes()


def test_a_recipe_calibrated_on_self_repeats_the_same_bits(run, tiny, tmp_path, monkeypatch):
    assert run("prune", tiny, *SMALL, "--out", tmp_path / "one")[0] == 0
    monkeypatch.setenv("NUMPRUNE_CACHE", str(tmp_path / "empty cache"))
    assert run("prune", "--recipe", tmp_path / "one" / "recipe.json", "--out", tmp_path / "two")[0] == 0
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


def test_prune_json(result, text, tmp_path):
    value = result("prune", MODEL, "--calibration", text, *SMALL, "--out", tmp_path / "small")
    assert value["out"] == str(tmp_path / "small")
    assert value["model"] == MODEL
    assert value["recipe"] == json.loads((tmp_path / "small" / "recipe.json").read_text())
    assert value["report"] == json.loads((tmp_path / "small" / "report.json").read_text())
    assert value["parameters"] == value["report"]["parameters_after"]
    assert 0 < value["mean_error_after"] < value["mean_error_before"] < 1
    assert value["seconds"] > 0


def test_flags_go_before_the_recipe(result, pruned, tmp_path):
    flags = ["--ratio", "0.2", "--compensation", "none", "--damping", "0.1", "--samples", "3", "--seed", "6"]
    flags += ["--allow-empty", "--round-heads", "2", "--round-channels", "16", "--allocation", "uniform"]
    flags += ["--set", "4.mlp=0.25", "--keep", "0.attention:", "--prune-units", "1.attention:0"]
    value = result("prune", "--recipe", pruned / "recipe.json", *flags, "--out", tmp_path / "other")["recipe"]
    before = json.loads((pruned / "recipe.json").read_text())
    assert value == {
        **before,
        "ratio": 0.2,
        "compensation": "none",
        "damping": 0.1,
        "calibration": {**before["calibration"], "samples": 3, "seed": 6},
        "allow_empty": True,
        "round_heads": 2,
        "round_channels": 16,
        "allocation": "uniform",
        "ratios": {"3.mlp": 0.6, "4.mlp": 0.25},
        "keep": {},
        "prune": {"1.attention": [0]},
    }


def test_a_false_flag_overrides_a_true_recipe(pruned, tmp_path):
    recipe = change_recipe(pruned, tmp_path / "recipe.json", allow_empty=True)
    args = build_parser().parse_args(["prune", "--recipe", str(recipe), "--no-allow-empty", "--out", "x"])
    assert _recipe(args).allow_empty is False


def test_without_flags_the_default_preset_prunes(pruned):
    parse = build_parser().parse_args
    assert _recipe(parse(["prune", MODEL, "--out", "x"])) == numprune.preset("balanced").applied(Recipe())
    assert _recipe(parse(["prune", MODEL, "--preset", "paper", "--out", "x"])) == Recipe()
    written = Recipe.read(pruned / "recipe.json")
    assert _recipe(parse(["prune", "--recipe", str(pruned / "recipe.json"), "--out", "x"])) == written


def test_an_earlier_output_is_replaced(run, tiny, text, tmp_path):
    out = tmp_path / "small"
    for ratio in ("0.2", "0.5"):
        code, _, err = run("prune", tiny, "--calibration", text, *SMALL, "--ratio", ratio, "--out", out)
        assert code == 0, err
    assert json.loads((out / "recipe.json").read_text())["ratio"] == 0.5
    assert leftovers(tmp_path) == ["small"]


# score, eval, generate, serve


def test_score_prints_one_row_a_module_and_writes_all_units(run, text, tmp_path):
    csv = tmp_path / "scores.csv"
    code, out, _ = run("score", MODEL, "--calibration", text, *SMALL, "--out", csv)
    assert code == 0
    model = numprune.load(MODEL)
    assert len(out.splitlines()) == 1 + len(model.blocks)
    lines = csv.read_text().splitlines()
    assert lines[0].startswith("layer,module,unit,score")
    assert len(lines) == 1 + sum(model.units().values())


def test_score_against_another_method_names_the_units_they_disagree_on(result, run, text):
    argv = ("score", MODEL, "--against", "magnitude", "--calibration", text, *SMALL)
    modules = result(*argv)["modules"]
    assert len(modules) == 16
    for module in modules:
        assert -1 <= module["spearman"] <= 1
        assert module["removed"] == module["units"] // 2
        assert module["both"] + len(module["only_first"]) == module["removed"]
        assert len(module["only_first"]) == len(module["only_second"])
    code, out, _ = run(*argv)
    assert code == 0
    assert "spearman" in out.splitlines()[0]
    assert run("score", MODEL, "--against", "mine")[0] == 2


def test_score_json(result, text):
    value = result("score", MODEL, "--calibration", text, *SMALL, "--method", "newton_boxed", "--score-ratio", "0.25")
    assert (value["model"], value["method"], value["ratio"]) == (MODEL, "newton_boxed", 0.25)
    assert value["calibration"]["tokens"] == 4 * 64
    assert len(value["modules"]) == len(numprune.load(MODEL).blocks)
    for module in value["modules"]:
        assert module["lowest"] <= module["median"] <= module["highest"]
        assert module["module"] in ("attention", "mlp")


def test_eval_json_of_one_model(result, text):
    value = result("eval", MODEL, "--data", text, "--sequence-length", "128", "--stride", "64")
    expected = numprune.perplexity(numprune.load(MODEL), text, sequence_length=128, stride=64)
    assert value["perplexity"] == pytest.approx(float(expected))
    assert value["tokens"] == expected.tokens
    assert value["parameters"] == numprune.load(MODEL).parameters
    assert (value["device"], value["dtype"]) == ("cuda:0" if _cuda() else "cpu", value["dtype"])
    assert "speed" not in value


def test_eval_of_several_models_is_a_list(result, pruned, text):
    dense, small = result("eval", MODEL, pruned, "--data", text)
    assert (dense["model"], small["model"]) == (MODEL, str(pruned))
    assert small["parameters"] < dense["parameters"]
    assert small["perplexity"] != dense["perplexity"]


def test_eval_and_generate_open_a_model_that_is_spread(run, result, pruned, text, tmp_path):
    places = tmp_path / "map.json"
    places.write_text('{"": "cpu", "model.layers.1": "disk"}')
    whole = result("eval", pruned, "--data", text)
    for flags in (["--device-map", places], ["--device-map", "auto", "--max-memory", "cpu=1MB"]):
        assert result("eval", pruned, "--data", text, *flags)["perplexity"] == whole["perplexity"]
        code, _, notes = run("generate", pruned, "--prompt", "Once", "--max-new-tokens", 3, *flags)
        assert code == 0
        assert "GB on disk" in notes


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--device-map", "some"], "device_map is 'some'; use auto"),
        (["--device-map", "missing.json"], "--device-map missing.json cannot be read"),
        (["--device-map", "list.json"], "list.json holds no object"),
        (["--max-memory", "cpu=1GB"], "give device_map auto as well"),
        (["--device-map", "auto", "--max-memory", "1GB"], "give pairs such as 0=20GB,cpu=40GB"),
        (["--device-map", "auto", "--device", "cpu"], "leave one of them out"),
    ],
)
def test_a_bad_spread_is_one_sentence(flags, says, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    for command in (["eval", MODEL], ["generate", MODEL, "--prompt", "Once"]):
        code, _, error = run(*command, *flags)
        assert code == 2
        assert says in error
        assert len(error.strip().splitlines()) == 1


def test_eval_measures_speed_on_request(result, pruned, text):
    speed = result("eval", pruned, "--data", text, "--speed")["speed"]
    for phase in ("prefill", "decode"):
        median, low, high = speed[phase]
        assert 0 < low <= median <= high


def test_eval_reads_the_held_out_stories_by_default(run, text, monkeypatch):
    monkeypatch.setattr(numprune, "held_out_text", lambda: text)
    code, out, _ = run("eval", MODEL)
    assert code == 0
    assert f"tokens of {text}" in out


def test_generate_json(result):
    prompts = ["Once upon a time", "The cat"]
    flags = ["--max-new-tokens", "8", "--temperature", "0.5", "--top-k", "20", "--top-p", "0.9", "--seed", "3"]
    value = result("generate", MODEL, "--prompt", prompts[0], "--prompt", prompts[1], *flags)
    assert value["prompts"] == prompts
    assert all(text.startswith(prompt) for text, prompt in zip(value["texts"], prompts, strict=True))
    settings = {"max_new_tokens": 8, "temperature": 0.5, "top_k": 20, "top_p": 0.9, "seed": 3}
    assert value["settings"] == settings
    assert value["texts"] == numprune.generate(numprune.load(MODEL), prompts, **settings)


def test_generate_streams_to_a_terminal(run, monkeypatch):
    flags = ("generate", MODEL, "--prompt", "Once upon", "--max-new-tokens", "12")
    plain = run(*flags)[1]
    writes = []

    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            writes.append(text)
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(list(flags)) == 0
    assert "".join(writes) == plain
    assert len(writes) > 5


@pytest.fixture
def served(monkeypatch):
    """What `serve` hands to the dashboard, without opening one."""
    calls = []
    page = types.ModuleType("numprune.ui.launch")
    page.launch = lambda model, serving, policy, **_: calls.append((model, serving, policy))
    monkeypatch.setitem(sys.modules, "numprune.ui.launch", page)
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    return calls


def test_serve_listens_on_this_machine_only_unless_told_otherwise(run, served, monkeypatch):
    assert run("serve")[0] == 0
    assert run("serve", "--model", "other", "--host", "0.0.0.0", "--port", "9000")[0] == 0
    monkeypatch.setenv("GRADIO_SERVER_NAME", "::1")
    assert run("serve")[0] == 0
    assert [(model, serving.host, serving.port) for model, serving, _ in served] == [
        (MODEL, "127.0.0.1", 7860),
        ("other", "0.0.0.0", 9000),
        (MODEL, "::1", 7860),
    ]
    _, serving, policy = served[0]
    assert (serving.auth, serving.root_path, serving.share) == (None, "", False)
    assert (policy.models, policy.max_parameters) == (None, None)


def test_serve_takes_limits_for_visitors(run, served):
    limits = ["--allow-models", "a/b, c/d", "--max-model-params", "1.5B"]
    assert run("serve", "--auth", "ada:se:cret", "--root-path", "/prune", *limits)[0] == 0
    _, serving, policy = served[0]
    assert serving.auth == ("ada", "se:cret")
    assert serving.root_path == "/prune"
    assert policy.models == (MODEL, "a/b", "c/d")
    assert policy.max_parameters == 1_500_000_000


@pytest.mark.parametrize("flags", [["--auth", "ada"], ["--max-model-params", "many"], ["--max-model-params", "0"]])
def test_serve_refuses_limits_it_cannot_read(run, served, flags):
    code, _, err = run("serve", *flags)
    assert code == 2
    assert flags[0] in err
    assert not served


def test_serve_names_a_port_that_is_taken(run, monkeypatch):
    def launch(model, serving, policy, **_):
        raise OSError("in use")

    page = types.ModuleType("numprune.ui.launch")
    page.launch = launch
    monkeypatch.setitem(sys.modules, "numprune.ui.launch", page)
    code, _, err = run("serve", "--port", "81")
    assert code == 2
    assert "127.0.0.1:81" in err


# bench

TINY = ["--hidden", "32", "--channels", "48", "--layers", "1", "--heads", "2", "--samples", "2"]
TINY += ["--sequence-length", "16", "--new-tokens", "2", "--repetitions", "1"]


def test_bench_runs_everything_by_default(run, tmp_path):
    out = tmp_path / "bench.json"
    sizes = ["--sizes", "16,32", "--out-features", "8"]
    code, printed, err = run("bench", *sizes, *TINY, "--out", out, "--device", "cpu")
    assert code == 0, err
    value = json.loads(out.read_text())
    names = ["score 16", "score 32", "eliminate 16", "eliminate 32", "calibrate", "prune", "speed", "images"]
    assert [each["name"] for each in value["benchmarks"]] == names
    for each in value["benchmarks"]:
        assert each["name"] in printed
        assert each["device"] == "cpu"
        for figure in each["figures"]:
            assert figure["n"] >= 1
            assert figure["min"] <= figure["median"] <= figure["max"]


def test_bench_json_of_one(result):
    value = result("bench", "score", "--sizes", "24", "--out-features", "8", "--loop-steps", "3")
    (only,) = value["benchmarks"]
    assert only["settings"] == {"channels": 24, "out_features": 8, "loop_steps": 3}
    assert any("extrapolated from 3" in figure["name"] for figure in only["figures"])


@pytest.mark.parametrize("flags", [("--sizes", "64,"), ("--sizes", "0"), ("--repetitions", "0"), ("--heads", "3")])
def test_bench_refuses_bad_numbers(run, flags):
    assert run("bench", "calibrate", *flags, "--hidden", "32")[0] == 2


# errors


def refused(run, code, argv, *words):
    """The command ends with `code` and one sentence that holds `words`, and leaves stdout empty."""
    got, out, err = run(*argv)
    assert got == code, err
    assert out == ""
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert str(word) in err


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--ratio", "1.2"), "ratio is 1.2"),
        (("--ratio", "nan"), "ratio is nan"),
        (("--ratio", "-0.1"), "ratio is -0.1"),
        (("--scorer", "best"), "newton"),
        (("--allocation", "local"), "uniform"),
        (("--compensation", "some"), "paper"),
        (("--damping", "-1"), "damping is -1"),
        (("--round-heads", "0"), "round_heads is 0"),
        (("--samples", "0"), "samples is 0"),
        (("--set", "0.mlp=2"), "ratio is 2"),
        (("--set", "first.mlp=0.5"), "LAYER.KIND"),
        (("--set", "99.mlp=0.5"), "99.mlp"),
        (("--keep", "0.attention:99"), "0.attention"),
        (("--keep", "0.attention:1", "--prune-units", "0.attention:1"), "choose one"),
        (("--device", "gpu"), "gpu"),
        (("--dtype", "int4"), "int4"),
        (("--calibration", "no such file"), "no such file"),
        (("--recipe", "missing.json"), "missing.json"),
    ],
)
def test_prune_refuses_bad_input(run, text, tmp_path, flags, word):
    refused(run, 2, ["prune", MODEL, "--calibration", text, *SMALL, "--out", tmp_path / "out", *flags], word)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("nothing",),
        ("prune", MODEL),
        ("prune", MODEL, "--out", "x", "--ratio", "much"),
        ("prune", MODEL, "--out", "x", "--set", "3.mlp"),
        ("prune", MODEL, "--out", "x", "--set", "3.mlp=half"),
        ("prune", MODEL, "--out", "x", "--keep", "0.attention:one"),
        ("generate", MODEL),
        ("eval",),
    ],
)
def test_usage_errors(run, argv):
    code, out, err = run(*argv)
    assert code == 2
    assert out == ""
    assert "usage: numprune" in err


def test_prune_needs_a_model(run, tmp_path):
    refused(run, 2, ["prune", "--out", tmp_path / "out"], "MODEL")


def test_a_recipe_of_another_model(run, pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(numprune, "calibrate_by_recipe", None)  # it is refused before any work
    recipe = change_recipe(pruned, tmp_path / "recipe.json", fingerprint="0" * 16)
    refused(run, 2, ["prune", MODEL, "--recipe", recipe, "--out", tmp_path / "out"], "0" * 16, MODEL)
    refused(run, 2, ["prune", pruned, "--recipe", pruned / "recipe.json", "--out", tmp_path / "out"], "made for")
    assert leftovers(tmp_path) == ["recipe.json"]


def test_a_recipe_with_an_unknown_key(run, pruned, tmp_path):
    recipe = change_recipe(pruned, tmp_path / "recipe.json", colour="blue")
    refused(run, 2, ["prune", "--recipe", recipe, "--out", tmp_path / "out"], "colour")


def test_a_recipe_without_its_text(run, pruned, tmp_path):
    calibration = {**json.loads((pruned / "recipe.json").read_text())["calibration"], "data": None}
    recipe = change_recipe(pruned, tmp_path / "recipe.json", calibration=calibration)
    refused(run, 2, ["prune", "--recipe", recipe, "--out", tmp_path / "out"], "--calibration")


@pytest.mark.parametrize(("content", "word"), [("", "no text"), ("Once upon a time.", "tokens")])
def test_too_little_text(run, tmp_path, content, word):
    short = tmp_path / "short.txt"
    short.write_text(content)
    refused(run, 2, ["prune", MODEL, "--calibration", short, *SMALL, "--out", tmp_path / "out"], word)
    refused(run, 2, ["score", MODEL, "--calibration", short, *SMALL], word)
    assert leftovers(tmp_path) == ["short.txt"]


def test_an_unusable_output_is_refused_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(numprune, "load", None)
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_text("meow")
    refused(run, 2, ["prune", MODEL, "--out", foreign], foreign, "not written by numprune")
    refused(run, 2, ["prune", MODEL, "--out", foreign / "cat.jpg"], "not written by numprune")
    refused(run, 4, ["prune", MODEL, "--out", foreign / "cat.jpg" / "out"], "choose another output folder")
    assert (foreign / "cat.jpg").read_text() == "meow"


def test_models_that_cannot_be_loaded(run, text, tmp_path):
    refused(run, 3, ["prune", "no-such-model", "--out", tmp_path / "out"], "no-such-model", "embedded model")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text('{"model_type": "llama"}')
    for argv in (["eval", empty], ["score", empty], ["generate", empty, "--prompt", "a"]):
        refused(run, 3, argv, "no weights")
    (empty / "config.json").write_text('{"model_type": "t5"}')
    (empty / "model.safetensors").write_text("")
    refused(run, 3, ["eval", empty], "not supported")


def test_a_full_disk_leaves_nothing(run, tiny, text, tmp_path, monkeypatch):
    def full(self, folder, **options):
        (Path(folder) / "model.safetensors").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    argv = ["prune", tiny, "--calibration", text, *SMALL, "--out", tmp_path / "out"]
    refused(run, 4, argv, "No space left", tmp_path / "out")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_while_writing_leaves_nothing(run, tiny, text, tmp_path, monkeypatch, stop, code):
    before = signal.getsignal(stop)

    def interrupted(self, folder, **options):
        (Path(folder) / "model.safetensors").write_text("half")
        signal.raise_signal(stop)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", interrupted)
    argv = ["prune", tiny, "--calibration", text, *SMALL, "--out", tmp_path / "out"]
    refused(run, code, argv, "Stopped; nothing half-written was left.")
    assert leftovers(tmp_path) == []
    assert signal.getsignal(stop) is before


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_that_a_library_makes_another_error_of_is_a_stop(run, tiny, text, tmp_path, monkeypatch, stop, code):
    """As safetensors does in the middle of a tensor."""

    def swallowed(self, folder, **options):
        try:
            signal.raise_signal(stop)
        except KeyboardInterrupt:
            raise RuntimeError("could not determine the shape") from None

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", swallowed)
    argv = ["prune", tiny, "--calibration", text, *SMALL, "--out", tmp_path / "out"]
    refused(run, code, argv, "Stopped; nothing half-written was left.")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (numprune.NumericalError("The Gram matrix is singular; do more."), "singular"),
        (MemoryError(), "Out of memory"),
        (RuntimeError("CUDA out of memory. Tried\nto allocate"), "Out of memory"),
        (RuntimeError("surprise\nsecond line"), "RuntimeError: surprise"),
    ],
)
def test_failures_are_one_sentence(run, monkeypatch, error, word):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(numprune, "perplexity", fail)
    refused(run, 4, ["eval", MODEL], word)
    code, _, err = run("eval", MODEL, "--debug")
    assert code == 4
    assert "Traceback" in err


# what is written where


def test_notes_go_to_stderr_and_into_the_json(run, text):
    argv = ["score", MODEL, "--calibration", text, "--samples", "2", "--sequence-length", "9999", "--json"]
    code, out, err = run(*argv)
    assert code == 0
    assert "capped" in json.loads(out)["notes"][0]
    assert "Note: " in err
    assert run(*argv, "--quiet")[2] == ""


def test_json_stays_alone_when_a_library_prints(run, text, monkeypatch):
    measure = numprune.perplexity
    monkeypatch.setattr(numprune, "perplexity", lambda *args, **kwargs: print("hello") or measure(*args, **kwargs))
    code, out, err = run("eval", MODEL, "--data", text, "--json")
    assert code == 0
    assert json.loads(out)["tokens"]
    assert "hello" in err


def test_a_terminal_sees_progress(run, text, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for quiet in ([], ["--quiet"]):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        assert run("score", MODEL, "--calibration", text, *SMALL, *quiet)[0] == 0
        assert ("scoring" in terminal.getvalue()) == (not quiet)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"example:\n  numprune {name}" in out


def test_the_help_names_every_choice(run):
    out = run("prune", "--help")[1]
    for name in (*numprune.SCORERS, *ALLOCATIONS, *COMPENSATIONS, *numprune.DATASETS):
        assert name in out


def test_the_help_names_every_method(run):
    for command in ("prune", "sweep"):
        out = run(command, "--help")[1]
        assert all(name in out for name in numprune.METHODS)


def test_the_main_help_lists_commands_and_exit_codes(run):
    code, out, _ = run("--help")
    assert code == 0
    for word in (*NAMES, "exit codes", "130", "example:"):
        assert word in out
    assert run("--version")[1].strip() == f"numprune {numprune.__version__}"


# processes of their own


def python(*argv, **options):
    return subprocess.run(
        [sys.executable, *map(str, argv)], capture_output=True, text=True, timeout=300, check=False, **options
    )


def test_help_waits_for_no_heavy_import():
    done = python("-X", "importtime", "-m", "numprune", "--help")
    assert done.returncode == 0
    assert "exit codes" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "numprune.cli.entry" in imported
    assert not imported & {"torch", "transformers", "pandas", "gradio"}


STARTED = """
import signal
import sys
# Shells start background jobs without it.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.modules["gradio"] = None  # importing it fails
import numprune
from numprune.cli import main
calibrate = numprune.calibrate_by_recipe
def announced(*args, **kwargs):
    print("started", flush=True)
    return calibrate(*args, **kwargs)
numprune.calibrate_by_recipe = announced
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_ctrl_c_during_the_work_which_needs_no_gradio(tmp_path):
    argv = ["prune", MODEL, "--samples", "4000", "--sequence-length", "256", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline().strip() == "started"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == "Stopped; nothing half-written was left.\n"
    assert leftovers(tmp_path) == []


def test_a_reader_that_left_is_no_error(run, text, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as left:
        monkeypatch.setattr(sys, "stdout", left)
        code, _, err = run("score", MODEL, "--calibration", text, *SMALL, "--no-bos")
    assert code == 0
    assert err == ""


def test_a_pruned_folder_holds_narrower_weights(pruned):
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(pruned / "model.safetensors").items()}
    dense = numprune.load(MODEL)
    units = numprune.load(pruned).units()
    kept = units[numprune.ModuleKey(3, "mlp")]
    assert shapes["model.layers.3.mlp.down_proj.weight"] == (dense.config.hidden_size, kept)
    assert kept == round(0.4 * dense.config.intermediate_size)


def _cuda():
    return numprune.load(MODEL).device.type == "cuda"
