"""Commands that are killed at random moments: what lies at the output is whole or not there."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import numprune

STORY = "the cat and the dog sat on a mat and then the hen ran to the barn. " * 40
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(numprune.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    place = tmp_path_factory.mktemp("killed")
    (place / "a.txt").write_text(STORY)
    (place / "tiny").symlink_to(tiny)
    return place


def prune(out):
    text = ["--calibration", "a.txt", "--samples", "8", "--sequence-length", "32"]
    return ["prune", "tiny", *text, "--device", "cpu", "--out", out]


def export(out):
    return ["export", "tiny", "--format", "transformers", "--out", out]


def sweep(out):
    text = ["--calibration", "a.txt", "--samples", "4", "--sequence-length", "16", "--data", "a.txt"]
    more = ["--methods", "paper,flap,magnitude", "--ratios", "0.2,0.4", "--seeds", "0", "--repetitions", "0"]
    return ["sweep", "tiny", *text, *more, "--device", "cpu", "--out", f"{out}.csv"]


def started(command, place):
    return subprocess.Popen(
        [sys.executable, "-m", "numprune", *command],
        cwd=place,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def whole(place, out, name):
    """Whether an output is there; it must then be complete."""
    target = place / (f"{out}.csv" if name == "sweep" else out)
    if not target.exists():
        return False
    if name == "sweep":
        header, *rows = target.read_text().splitlines()
        assert all(row.count(",") == header.count(",") for row in rows)
    else:
        assert json.loads((target / "config.json").read_text())
        assert numprune.load(target, device="cpu").parameters
    return True


@pytest.mark.parametrize(
    ("command", "kills", "stops"), [(prune, 3, 1), (export, 2, 1), (sweep, 2, 1)], ids=["prune", "export", "sweep"]
)
def test_an_output_is_whole_or_not_there(place, command, kills, stops):
    name, chance = command.__name__, random.Random(0)
    began = time.monotonic()
    straight = started(command(f"{name}-straight"), place)
    _, told = straight.communicate(timeout=300)
    assert straight.returncode == 0, told
    took = time.monotonic() - began
    assert whole(place, f"{name}-straight", name)
    for how in [signal.SIGKILL] * kills + [signal.SIGTERM, signal.SIGINT] * stops:
        process = started(command(f"{name}-out"), place)
        time.sleep(took * chance.uniform(0.5, 1.0))
        process.send_signal(how)
        _, told = process.communicate(timeout=300)
        # Before the command itself begins, and behind its end, Python ends as it does.
        assert process.returncode in (0, CODES[how], -how), told
        whole(place, f"{name}-out", name)
        if process.returncode == CODES[how] and how != signal.SIGKILL:
            assert told.strip().endswith("Stopped; nothing half-written was left.")
            for left in place.glob(f".{name}-out*.partial"):
                pytest.fail(f"{left} was left by {how.name}")
        # What nobody could clear away is never taken for a result.
        for left in place.glob(f".{name}-out*.partial"):
            shutil.rmtree(left)
    again = started(command(f"{name}-out"), place)
    _, told = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert whole(place, f"{name}-out", name)
    if name == "sweep":
        cells = [(place / f"{name}-{each}.csv").read_text().splitlines() for each in ("straight", "out")]
        assert len(cells[0]) == len(cells[1])
