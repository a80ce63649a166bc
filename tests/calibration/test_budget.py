"""How much text a model is calibrated on where nobody says."""

import pytest
import torch
from architectures import tiny_model

from numprune import CalibrationRecipe
from numprune.calibration import budget
from numprune.calibration.budget import READ_ON_CPU, SIZES, WRITTEN_ON_CPU, size_note, sized


@pytest.fixture
def allow(monkeypatch):
    """Let a model of 64 tokens at most read, or write, so many tokens."""
    model = tiny_model(max_position_embeddings=64)

    def read(tokens, written=0):
        monkeypatch.setattr(budget, "READ_ON_CPU", tokens * model.parameters)
        monkeypatch.setattr(budget, "WRITTEN_ON_CPU", written * model.parameters)
        return model

    return read


@pytest.mark.parametrize(
    ("tokens", "asked", "size"),
    [
        (128 * 64, {}, (128, 2048)),
        (128 * 64 - 1, {}, (64, 512)),
        (8 * 64, {}, (8, 128)),
        (0, {}, (8, 128)),
        (128 * 64, {"samples": 200}, (200, 128)),
        (128 * 32, {"sequence_length": 32}, (128, 32)),
        (128 * 32 - 1, {"sequence_length": 32}, (64, 32)),
        (0, {"samples": 200, "sequence_length": 32}, (200, 32)),
    ],
)
def test_what_is_not_asked_for_follows_from_the_model(allow, tokens, asked, size):
    recipe = sized(allow(tokens), CalibrationRecipe("text.txt", seed=3), **asked)
    assert (recipe.samples, recipe.sequence_length) == size
    assert (recipe.data, recipe.seed) == ("text.txt", 3)


class Sized:
    """A model as far as its size counts."""

    def __init__(self, parameters, *, device="cpu", longest=8192):
        self.parameters, self.device, self.maximum_length = parameters, torch.device(device), longest
        self.reads_text = True


def size_of(model, data):
    recipe = sized(model, CalibrationRecipe(data))
    return recipe.samples, recipe.sequence_length


@pytest.mark.parametrize(
    ("parameters", "own", "text"),
    [(4e6, (128, 2048), (128, 2048)), (135e6, (32, 256), (128, 512)), (1.2e9, (8, 128), (32, 256))],
)
def test_defaults_on_a_cpu_follow_from_the_models_size(parameters, own, text):
    assert size_of(Sized(parameters), "self") == own
    assert size_of(Sized(parameters), "stories.txt") == text
    assert size_of(Sized(parameters), "stories.txt,self") == own
    assert size_of(Sized(parameters, device="cuda"), "self") == SIZES[0]
    for size, most in ((own, WRITTEN_ON_CPU), (text, READ_ON_CPU)):
        assert size == SIZES[-1] or size[0] * size[1] * parameters <= most


def test_a_short_context_counts_as_long_as_it_is():
    assert size_of(Sized(30e6, longest=256), "self") == (128, 2048)


def test_a_size_that_is_not_the_papers_is_told():
    assert size_note(CalibrationRecipe(None, *SIZES[0])) is None
    assert "on 8 sequences of 128 tokens" in size_note(CalibrationRecipe(None, 8, 128))
