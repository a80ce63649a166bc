"""Before long work the command line says how long it takes, and what it does by default fits the device."""

import json

import pytest
from architectures import make_tokenizer, tiny_model

from numprune import waiting
from numprune.cli.console import Console, Stages
from numprune.plan.recipe import CalibrationRecipe


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    time = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: time[0])
    return time


def run_stage(stages, clock, total, seconds, what="calibrating", steps=5):
    for done in range(1, steps + 1):
        clock[0] += seconds * (10 if done == 1 else 1)
        stages(done, total, what)


@pytest.mark.parametrize(
    ("total", "seconds", "says"),
    [
        (100, 30, "Calibrating will take about 49 minutes on this device.\n"),
        (1000, 30, "Calibrating will take about 8 hours on this device.\n"),
        (20, 2.0, "Calibrating will take about 36 seconds on this device.\n"),
        (1000, 0.3, "Calibrating will take about 5 minutes on this device.\n"),  # told after a whole second
        (8, 2.0, ""),
        (100, 0.01, ""),
    ],
)
def test_a_long_stage_is_told_once_from_what_was_timed_behind_its_first_batch(capsys, clock, total, seconds, says):
    run_stage(Stages(bars=False), clock, total, seconds)
    assert capsys.readouterr().err == says


def test_every_stage_is_told_for_itself_and_names_that_change_are_left_out(capsys, clock):
    stages = Stages(bars=False)
    run_stage(stages, clock, 100, 30)
    for done in range(1, 4):
        clock[0] += 10
        stages(done, 60, f"scoring {done}.mlp")
    assert capsys.readouterr().err.splitlines()[1:] == ["Scoring will take about 10 minutes on this device."]


def test_quiet_commands_say_nothing_and_bars_keep_the_line(capsys, clock):
    with Console(quiet=True).progress() as progress:
        assert progress is None
    stages = Stages(bars=True)
    run_stage(stages, clock, 100, 30)
    stages.close()
    assert "Calibrating will take about 49 minutes on this device.\n" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "says"), [(31, "31 seconds"), (100, "2 minutes"), (9000, "2 hours")])
def test_durations_as_people_say_them(seconds, says):
    assert waiting.duration(seconds) == says


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tiny checkpoint on a machine for which it is a large one."""
    monkeypatch.setattr("numprune.calibration.budget.READ_ON_CPU", 4e7)
    model = tiny_model("llama-gqa-tied", tokenizer=make_tokenizer())
    model.module.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "a.txt").write_text("the cat and the dog sat on a mat. " * 400)
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "used"),
    [([], (16, 64)), (["--samples", 3], (3, 64)), (["--sequence-length", 9], (128, 9))],
)
def test_the_recipe_records_what_was_done(run, folder, flags, used):
    out = folder / "out"
    argv = ["prune", folder / "model", "--calibration", folder / "a.txt", "--preset", "paper", "--out", out, *flags]
    code, _, err = run(*argv)
    assert code == 0, err
    assert ("On a CPU a model of this size is calibrated on 16 sequences" in err) == (not flags)
    written = CalibrationRecipe(**json.loads((out / "recipe.json").read_text())["calibration"])
    assert (written.samples, written.sequence_length) == used
    code, _, err = run("prune", "--recipe", out / "recipe.json", "--out", folder / "again")
    assert code == 0, err
    assert "On a CPU" not in err
    assert (folder / "again/model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
