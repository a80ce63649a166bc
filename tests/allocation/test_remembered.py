"""A search that was stopped goes on from what it measured, to the same result."""

import json
import threading

import pytest
import torch
from architectures import random_ids, random_scores, tiny_model

from numprune import Cancelled, Recipe, calibrate, suggest
from numprune.allocation.remembered import RememberedTrial
from numprune.allocation.trial import FittedTrial, MaskedTrial

RECIPES = [Recipe(ratio=0.4), Recipe(ratio=0.4, compensation="network")]


@pytest.fixture
def scored(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMPRUNE_CACHE", str(tmp_path))
    model = tiny_model("llama")
    stats = calibrate(model, random_ids(8, 24), samples=8, sequence_length=24)
    return model, stats, random_scores(model, seed=2)


def count(monkeypatch):
    """How often trials are really measured from here on."""
    measured = []
    for kind in (MaskedTrial, FittedTrial):
        real = kind.loss
        monkeypatch.setattr(kind, "loss", lambda self, keep, real=real: measured.append(0) or real(self, keep))
    return measured


def stopping(after):
    stop = threading.Event()
    steps = []

    def progress(done, total, what, /):
        steps.append(done)
        if len(steps) >= after:
            stop.set()

    return {"progress": progress, "cancel": stop}


@pytest.mark.parametrize("recipe", RECIPES, ids=["masked", "fitted"])
def test_a_stopped_search_goes_on_where_it_was(scored, recipe, monkeypatch, tmp_path):
    measured = count(monkeypatch)
    whole = suggest(*scored, recipe)
    total = len(measured)
    assert not list(tmp_path.glob("search-*"))
    measured.clear()
    with pytest.raises(Cancelled):
        suggest(*scored, recipe, **stopping(3))
    before = len(measured)
    assert 0 < before < total
    assert list(tmp_path.glob("search-*"))
    measured.clear()
    assert suggest(*scored, recipe) == whole
    # The trial that the stop cut off is the only one that may be measured twice.
    assert len(measured) <= total - before + 1
    assert not list(tmp_path.glob("search-*"))


def test_losses_are_of_their_model_sequences_and_fit_alone(scored):
    model, stats, _ = scored
    other = tiny_model("llama", seed=1)
    foreign = calibrate(other, random_ids(8, 24), samples=8, sequence_length=24)
    rows = calibrate(model, random_ids(8, 24, seed=5), samples=8, sequence_length=24)
    fitted = Recipe(compensation="network")
    trials = [
        FittedTrial(model, stats, fitted, 8),
        FittedTrial(model, stats, fitted.replace(damping=0.1), 8),
        FittedTrial(model, stats, fitted, 2),
        FittedTrial(model, rows, fitted, 8),
        FittedTrial(other, foreign, fitted, 8),
        MaskedTrial(model, stats, Recipe(), 8),
        MaskedTrial(model, stats, Recipe(compensation="none"), 8),
    ]
    paths = {RememberedTrial(trial).path for trial in trials}
    assert len(paths) == len(trials)
    # The ratio is not what a loss depends on.
    assert RememberedTrial(FittedTrial(model, stats, fitted.replace(ratio=0.9), 8)).path in paths


def test_a_damaged_file_or_a_disk_that_cannot_be_written_costs_time_alone(scored, tmp_path, monkeypatch):
    model, stats, _ = scored
    keep = {block.key: tuple(range(1, block.units)) for block in model.blocks}
    real = MaskedTrial(model, stats, Recipe(), 8).loss(keep)
    trial = RememberedTrial(MaskedTrial(model, stats, Recipe(), 8))
    dense = trial.dense_loss()
    [written] = trial.path.read_text().splitlines()
    measured = count(monkeypatch)
    flipped = written.replace(str(dense)[:3], "9.9").encode()
    for damage in (flipped, b"7", b'[["dense"], 1, "a"]', b'["dense", 1.25]', b"\xff\xfe", b"nonsense", b'["cut o'):
        trial.path.write_bytes(damage + b"\n")
        assert RememberedTrial(MaskedTrial(model, stats, Recipe(), 8)).dense_loss() == dense
    trial.path.write_text(f'{written}\n["cut o')
    again = RememberedTrial(MaskedTrial(model, stats, Recipe(), 8))
    assert (again.dense_loss(), again.loss(keep), len(measured)) == (dense, real, 1)
    assert json.loads(trial.path.read_text().splitlines()[-1].split("cut o")[-1] or "[]") is not None
    monkeypatch.setenv("NUMPRUNE_CACHE", str(tmp_path / "file" / "folder"))
    (tmp_path / "file").write_text("no folder")
    assert RememberedTrial(MaskedTrial(model, stats, Recipe(), 8)).loss(keep) == real


def test_an_infinite_loss_is_remembered(scored, monkeypatch):
    model, stats, _ = scored
    keep = {block.key: tuple(range(1, block.units)) for block in model.blocks}
    monkeypatch.setattr(MaskedTrial, "loss", lambda self, keep: float("inf"))
    RememberedTrial(MaskedTrial(model, stats, Recipe(), 8)).loss(keep)
    monkeypatch.setattr(MaskedTrial, "loss", lambda self, keep: 0.0)
    assert RememberedTrial(MaskedTrial(model, stats, Recipe(), 8)).loss(keep) == torch.inf
