"""A model people use, which tiny ones do not stand for: wide modules, a large vocabulary, massive activations.

Runs where NUMPRUNE_SMOLLM2 names a folder with SmolLM2-135M, such as the one that benchmarks/smollm2.py makes.
"""

import os

import numpy as np
import pytest

import numprune
from numprune import Recipe
from numprune.calibration.data import documents
from numprune.evaluation.methods import Shared, pruned_by

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("NUMPRUNE_SMOLLM2" not in os.environ, reason="NUMPRUNE_SMOLLM2 names no folder"),
]


@pytest.fixture(scope="module")
def model():
    return numprune.load(os.environ["NUMPRUNE_SMOLLM2"], device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def texts():
    stories = documents(numprune.held_out_text(), "test")
    return stories[::2], stories[1::2]


@pytest.fixture(scope="module")
def stats(model, texts):
    return numprune.calibrate(model, texts[0], samples=12, sequence_length=256)


@pytest.fixture(scope="module")
def shared(model):
    return Shared(model.device)


def test_prices_of_wide_modules_are_finite_and_rise_in_the_order_of_removal(model, stats, shared):
    scores = shared.get("scores", "fisher", lambda: numprune.score(model, stats, scorer="fisher"))
    assert {len(module.units) for module in scores.modules.values()} == {3, 1536}
    assert all(np.isfinite(module.units).all() and (module.units >= 0).all() for module in scores.modules.values())


@pytest.mark.parametrize("ratio", [0.2, 0.3])
def test_the_default_loses_less_than_every_rival(model, stats, texts, shared, ratio):
    def loss(pruned):
        return numprune.perplexity(pruned, texts[1], sequence_length=256, max_tokens=2000).nll

    lost = {
        method: loss(pruned_by(model, stats, method, Recipe(ratio=ratio), shared=shared).model)
        for method in ("balanced", "paper", "flap", "wanda_sp", "magnitude")
    }
    assert loss(model) < lost["balanced"] < min(value for name, value in lost.items() if name != "balanced")
