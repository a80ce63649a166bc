"""A value that is not finite is named where it arises, and nothing is written."""

import numpy as np
import pytest
import torch
from architectures import make_tokenizer, random_ids, random_scores, tiny_model, with_recipe

from numprune import SCORERS, NumericalError, Recipe, allocate, calibrate, prune, score
from numprune.linalg import all_finite
from numprune.scoring.registry import scorer

LAST = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("name", [LAST, "model.norm.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_is_named_by_calibration(name, value):
    """Behind the last module no activation tells of it: three methods once pruned and saved such a model."""
    model = tiny_model("llama")
    model.module.get_parameter(name).data[-1] = value
    with pytest.raises(NumericalError, match=f"Tensor {name} of .* has a value that is NaN or infinite; download"):
        calibrate(model, random_ids(4, 16), samples=4, sequence_length=16)


@pytest.mark.parametrize("method", ["magnitude", "flap", "balanced", "slicegpt"])
def test_the_command_line_writes_nothing(method, tmp_path, run):
    model = tiny_model("llama", tokenizer=make_tokenizer())
    model.module.get_parameter(LAST).data[3, 2] = float("nan")
    model.save(tmp_path / "bad")
    (tmp_path / "text.txt").write_text("the cat sat on a red bird " * 40)
    flags = ["--calibration", tmp_path / "text.txt", "--samples", 2, "--sequence-length", 16, "--preset", method]
    code, _, err = run("prune", tmp_path / "bad", "--out", tmp_path / "out", *flags, "--quiet")
    assert code != 0
    assert f"Tensor {LAST}" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_is_refused_by_the_name_of_its_module(model, stats, value, monkeypatch):
    monkeypatch.setitem(SCORERS, "odd", None)

    @scorer("odd")
    def odd(weight, stats, *, ratio, key):
        channels = torch.ones(weight.shape[1], dtype=torch.float64)
        channels[-1] = value if key == (1, "mlp") else 1.0
        return channels

    with pytest.raises(NumericalError, match=r"Scorer odd gave 1\.mlp a score that is NaN or infinite"):
        score(model, stats, scorer="odd")


def test_a_weight_that_a_fit_left_is_named(model, stats, monkeypatch):
    def overflowing(weight, gram, keep, *, damping):
        return torch.full((len(weight), len(keep)), torch.inf, dtype=torch.float64)

    monkeypatch.setattr("numprune.pruning.compensate", overflowing)
    plan = with_recipe(allocate(random_scores(model), Recipe(ratio=0.4)), compensation="paper")
    with pytest.raises(NumericalError, match=r"Tensor model\.layers\.0.* has a value that is NaN or infinite; raise"):
        prune(model, plan, stats)


def test_large_sums_of_finite_values_are_finite():
    assert all_finite(torch.full((4,), 3e38))
    assert not all_finite(torch.tensor([1.0, float("inf"), float("-inf")]))
