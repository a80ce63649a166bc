"""Several processes at one task, against one."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import deep_model, make_tokenizer

import numprune
from numprune import CalibrationRecipe, InputError, NumpruneError, Recipe, load, preset, read_score_file
from numprune.ranks import Ranks

STORY = "the cat and the dog sat on a mat and then the hen ran to the barn. " * 1200
TEXT = ["--calibration", "a.txt", "--samples", "48", "--sequence-length", "256", "--device", "cpu"]
"""Three batches in memory and six layer by layer: processes have whole ones, as one process has all."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model in float32 and a text."""
    place = tmp_path_factory.mktemp("ranks")
    (place / "a.txt").write_text(STORY)
    model = deep_model("llama-gqa-tied", layers=3, tokenizer=make_tokenizer())
    model.config.max_position_embeddings = 512
    model.module.save_pretrained(place / "tiny")
    model.tokenizer.save_pretrained(place / "tiny")
    return place


@pytest.fixture
def together(forking, place):
    """Run one command in several processes that join, in the folder of the model; returns how each ended."""

    def run(*command, processes=2, **order):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return forking.run(*[command] * processes, cwd=str(place), together=port, **order)

    return run


def alone(forking, place, *command):
    (ended,) = forking.run(command, cwd=str(place))
    assert ended.code == 0, ended.err
    return ended


def same_model(one, other):
    """The same units and recipe, and weights that differ by less than a millionth of the largest."""
    first, second = (load(folder, device="cpu") for folder in (one, other))
    assert first.units() == second.units()
    assert first.recipe == second.recipe
    for (name, tensor), theirs in zip(
        first.module.state_dict().items(), second.module.state_dict().values(), strict=True
    ):
        limit = 1e-6 * float(tensor.abs().max()) if tensor.numel() else 0.0
        torch.testing.assert_close(theirs, tensor, rtol=0, atol=limit, msg=name)
    for ours, theirs in zip(first.report.modules, second.report.modules, strict=True):
        assert ours.error_after == pytest.approx(theirs.error_after, rel=1e-5, abs=1e-7)
    assert first.report.notes == second.report.notes


@pytest.mark.parametrize(
    "flags",
    [
        ["--preset", "balanced"],
        ["--preset", "paper"],
        ["--preset", "flap"],
        ["--preset", "taylor"],
        ["--preset", "best"],
        ["--preset", "healed", "--healing", "2"],
        ["--preset", "osscar", "--swaps", "1"],
        ["--preset", "drop"],
        ["--method", "slicegpt"],
        ["--uniform"],
    ],
    ids=" ".join,
)
def test_two_processes_prune_as_one(together, forking, place, flags):
    command = ["prune", "tiny", "--ratio", "0.4", *TEXT, *flags, "--json", "--out"]
    for folder in ("one", "two"):
        shutil.rmtree(place / folder, ignore_errors=True)
    said = json.loads(alone(forking, place, *command, "one").out)
    first, second = together(*command, "two")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    same_model(place / "one", place / "two")
    assert second.out == second.err == ""
    assert json.loads(first.out)["report"]["ratio_reached"] == said["report"]["ratio_reached"]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", ["balanced", "paper", "flap"])
def test_processes_prune_layer_by_layer_as_one(together, forking, place, tmp_path, name, processes):
    recipe = preset(name).applied(Recipe(ratio=0.4, calibration=CalibrationRecipe("a.txt", 48, 256)))
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    command = ["prune_layerwise", tmp_path / "recipe.json", "tiny"]
    alone(forking, place, *command, tmp_path / "one")
    ended = together(*command, tmp_path / "two", processes=processes)
    assert [each.code for each in ended] == [0] * processes, "".join(each.err for each in ended)
    same_model(tmp_path / "one", tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "recipe.json", "two"]


@pytest.mark.parametrize(
    ("command", "names"), [("score", "fisher,newton,taylor,flap,random"), ("score_layerwise", "fisher,newton,flap")]
)
def test_processes_score_as_one(together, forking, place, tmp_path, command, names):
    given = ["score", "tiny", *TEXT, "--method", names, "--out"] if command == "score" else [command, "tiny", names]
    alone(forking, place, *given, tmp_path / "one.safetensors")
    ended = together(*given, tmp_path / "three.safetensors", processes=3)
    assert [each.code for each in ended] == [0, 0, 0], "".join(each.err for each in ended)
    one, three = (read_score_file(tmp_path / f"{name}.safetensors") for name in ("one", "three"))
    assert list(one.tables) == list(three.tables) == names.split(",")
    assert one.calibration == three.calibration
    for name, table in one.tables.items():
        assert three.tables[name].influence == pytest.approx(table.influence, rel=1e-6)
        for key, module in table.modules.items():
            theirs = three.tables[name].modules[key].units
            np.testing.assert_allclose(theirs, module.units, rtol=0, atol=1e-6 * abs(module.units).max())
    assert len(list(tmp_path.iterdir())) == 2


def test_calibration_is_timed_in_all_processes(together):
    shape = ["--hidden", "64", "--channels", "96", "--heads", "4", "--layers", "1", "--samples", "16"]
    first, second = together("bench", "calibrate", *shape, "--sequence-length", "16", "--device", "cpu", "--json")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert json.loads(first.out)["benchmarks"][0]["name"] == "calibrate"
    assert second.out == ""


def test_processes_measure_perplexity_as_one(together, forking, place):
    command = ["eval", "tiny", "--data", "a.txt", "--sequence-length", "16", "--device", "cpu", "--json"]
    said = json.loads(alone(forking, place, *command).out)
    first, second = together(*command)
    assert second.out == ""
    measured = json.loads(first.out)
    for name in ("tokens", "windows"):
        assert measured[name] == said[name]
    for name in ("nll", "standard_error"):
        assert measured[name] == pytest.approx(said[name], rel=1e-6)


def test_processes_sweep_as_one(together, forking, place, tmp_path):
    command = ["sweep", "tiny", *TEXT, "--data", "a.txt", "--methods", "paper,magnitude", "--ratios", "0.2,0.4"]
    command += ["--repetitions", "0", "--out"]
    alone(forking, place, *command, tmp_path / "one.csv")
    ended = together(*command, tmp_path / "two.csv")
    assert [each.code for each in ended] == [0, 0], "".join(each.err for each in ended)
    one, two = (list(csv.DictReader((tmp_path / f"{name}.csv").open())) for name in ("one", "two"))
    assert [row["method"] for row in one] == [row["method"] for row in two]
    for ours, theirs in zip(one, two, strict=True):
        assert float(theirs["nll"]) == pytest.approx(float(ours["nll"]), rel=1e-6)
    assert (tmp_path / "two.html").is_file()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["generate", "tiny", "--prompt", "the"], "This command works in one process; start it without torchrun."),
        (["eval", "tiny", "--data", "a.txt", "--speed"], "Speed, tasks and images are measured in one process"),
        (["bench", "speed"], "Every benchmark but calibrate runs in one process"),
        (["sweep", "tiny", "--ratios", "0.2"], "with --repetitions 0 leaves it out"),
        (["prune", "tiny", *TEXT, "--speedup", "1.2", "--out", "no"], "Decode times are measured by one process"),
        (["prune", "nowhere", *TEXT, "--out", "no"], "nowhere"),
        (["prune", "tiny", "--ratio", "2", "--out", "no"], "ratio"),
        (
            ["prune", "tiny", *TEXT[:2], "--samples", "1", *TEXT[4:], "--out", "no"],
            "1 sequences cannot be shared by 2 processes; give at least 2 samples",
        ),
    ],
)
def test_what_is_refused_is_said_once(together, place, command, said):
    ended = together(*command)
    assert all(each.code in (2, 3, 4) for each in ended)
    told = [each.err for each in ended if each.err]
    assert len(told) == 1
    assert said in told[0]
    assert told[0].count("\n") == 1
    assert not (place / "no").exists()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("dies", [("keep_boundary", 2), ("keep_scores", 2), ("write_layer", 2), ("keep_streams", 2)])
def test_a_process_that_is_killed_ends_all_and_the_same_command_goes_on(together, forking, place, tmp_path, dies, rank):
    recipe = preset("balanced").applied(Recipe(ratio=0.4, calibration=CalibrationRecipe("a.txt", 16, 256)))
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    command = ["prune_layerwise", tmp_path / "recipe.json", "tiny", tmp_path / "two"]
    ended = together(*command, dies=(*dies, rank))
    assert ended[rank].code == -9
    assert ended[1 - rank].code == 1
    assert f"Process {1 - rank} of 2 lost another one, which ended or cannot be reached" in ended[1 - rank].err
    assert not (tmp_path / "two").exists()
    assert (tmp_path / "two.partial").is_dir()
    ended = together(*command)
    assert [each.code for each in ended] == [0, 0], "".join(each.err for each in ended)
    alone(forking, place, *command[:-1], tmp_path / "one")
    same_model(tmp_path / "one", tmp_path / "two")
    assert not (tmp_path / "two.partial").exists()


def test_one_process_does_not_go_on_where_two_have_stopped(together, forking, place, tmp_path):
    recipe = preset("paper").applied(Recipe(ratio=0.4, calibration=CalibrationRecipe("a.txt", 16, 256)))
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    command = ["prune_layerwise", tmp_path / "recipe.json", "tiny", tmp_path / "two"]
    together(*command, dies=("keep_moments", 2, 1))
    (ended,) = forking.run(command, cwd=str(place))
    assert ended.code == 1
    assert "was left by a run with other settings" in ended.err


def test_torchrun_starts_them(place, tmp_path):
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    run += ["-m", "numprune", "prune", "tiny", "--ratio", "0.4", *TEXT, "--out", tmp_path / "out", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(run, cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["report"]["ratio_asked"] == 0.4
    assert load(tmp_path / "out", device="cpu").recipe.ratio == 0.4


def test_modules_are_shared_by_what_they_take():
    work = {"a": 9.0, "b": 1.0, "c": 5.0, "d": 4.0, "e": 1.0}
    shares = [Ranks(rank, 2).share_modules(work) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(work)
    assert [sum(work[key] for key in share) for share in shares] == [10.0, 10.0]
    assert Ranks().share_modules(work) == list(work)


def test_batches_are_those_of_one_process():
    assert [each.tolist() for each in Ranks().batches(5, 2)] == [[0, 1], [2, 3], [4]]
    assert [each.tolist() for each in Ranks(0, 2).batches(5, 2)] == [[0, 1], [4]]
    assert [each.tolist() for each in Ranks(1, 2).batches(5, 2)] == [[2, 3]]
    assert [each.tolist() for each in Ranks(2, 3).batches(3, 16)] == [[2]]
    with pytest.raises(InputError, match="2 sequences cannot be shared by 3 processes"):
        Ranks(0, 3).batches(2, 1)


def test_outside_of_them_there_is_one(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with numprune.join_ranks() as ranks:
        assert (ranks.rank, ranks.count, ranks.first) == (0, 1, True)
        assert ranks.exchange({"a": 1}) == {"a": 1}
        assert ranks.total(3) == 3


def test_processes_that_cannot_be_reached_are_named(monkeypatch):
    starts = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "no port"}
    for name, value in starts.items():
        monkeypatch.setenv(name, value)
    message = r"The processes cannot be joined .*; start them with torchrun"
    with pytest.raises(NumpruneError, match=message), numprune.join_ranks():
        pass
