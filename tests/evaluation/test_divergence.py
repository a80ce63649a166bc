import math
import sys

import numpy as np
import pytest
import torch
from architectures import make_tokenizer, random_ids, random_scores, tiny_model
from scipy.special import log_softmax, rel_entr

from numprune import (
    Cancelled,
    Divergence,
    InputError,
    NumericalError,
    Recipe,
    allocate,
    calibrate,
    divergence,
    perplexity,
    prune,
)


@pytest.fixture
def pruned(model, stats):
    return prune(model, allocate(random_scores(model), Recipe(ratio=0.4)), stats)


@torch.no_grad()
def logits_of(model, row):
    """Logits that predict a row's tokens from its second on, each token alone in a forward pass."""
    return np.stack([model.module(row[None, :end]).logits[0, -1].double().numpy() for end in range(1, len(row))])


def expected(dense, other, rows):
    """KL by scipy and agreement, row by row."""
    pairs = [(logits_of(dense, row), logits_of(other, row)) for row in rows]
    kl = [rel_entr(*(np.exp(log_softmax(x, axis=-1)) for x in pair)).sum(-1) for pair in pairs]
    agree = [p.argmax(-1) == q.argmax(-1) for p, q in pairs]
    return np.concatenate(kl), np.concatenate(agree)


def test_it_is_what_scipy_says(model, pruned):
    rows = random_ids(3, 12)
    result = divergence(model, pruned, rows)
    kl, agree = expected(model, pruned, rows)
    assert result.kl.dtype == np.float64
    np.testing.assert_allclose(result.kl, kl, rtol=1e-4, atol=1e-6)
    assert result.agree.dtype == bool
    np.testing.assert_array_equal(result.agree, agree)
    assert result.n == len(result.tokens) == 3 * 11
    assert result.mean_kl == pytest.approx(kl.mean(), rel=1e-4)
    assert result.agreement == agree.mean()
    assert 0 < result.agreement < 1
    assert result.mean_kl > 0.01


@pytest.mark.parametrize("name", ["gemma2", "phi3", "gpt-neox-parallel", "opt"])
def test_other_architectures(name):
    dense = tiny_model(name)
    ids = random_ids(4, 16)
    stats = calibrate(dense, ids, samples=4, sequence_length=16)
    other = prune(dense, allocate(random_scores(dense), Recipe(ratio=0.3)), stats)
    result = divergence(dense, other, ids[:1])
    np.testing.assert_allclose(result.kl, expected(dense, other, ids[:1])[0], rtol=1e-4, atol=1e-6)


def test_a_model_does_not_diverge_from_itself(model):
    result = divergence(model, model, random_ids(3, 30))
    assert (result.kl == 0).all()
    assert result.agree.all()
    assert (result.mean_kl, result.agreement, result.standard_error) == (0, 1, 0)


def test_it_has_a_direction(model, pruned):
    there, back = (divergence(*pair, random_ids(2, 20)) for pair in ((model, pruned), (pruned, model)))
    assert there.mean_kl != pytest.approx(back.mean_kl, rel=1e-3)
    assert there.agreement == back.agreement


def test_long_windows_are_compared_in_chunks(model, pruned, monkeypatch):
    ids = random_ids(1, 40)
    whole = divergence(model, pruned, ids)
    monkeypatch.setattr(sys.modules["numprune.evaluation.divergence"], "EXACT_POSITIONS", 7)
    np.testing.assert_array_equal(divergence(model, pruned, ids).kl, whole.kl)


def test_windows_stand_side_by_side(model, pruned):
    row = random_ids(1, 20)[0]
    result = divergence(model, pruned, row, sequence_length=8)
    kl, _ = expected(model, pruned, [row[:8], row[8:16], row[16:]])
    np.testing.assert_allclose(result.kl, kl, rtol=1e-4, atol=1e-6)
    assert result.tokens == make_tokens(model, [*row[1:8], *row[9:16], *row[17:]])
    assert result.n == perplexity(model, row, sequence_length=8).tokens


def make_tokens(model, ids):
    return [model.tokenizer.decode([token]) for token in ids]


@pytest.mark.parametrize("limit", [1, 6, 7, 8, 13, 14, 15, 100])
def test_a_limit_keeps_the_first_positions(model, pruned, limit):
    rows = random_ids(3, 8)
    whole, some = (divergence(model, pruned, rows, limit=value) for value in (None, limit))
    assert some.n == min(limit, 21)
    np.testing.assert_allclose(some.kl, whole.kl[:limit], rtol=1e-5, atol=1e-7)
    assert some.tokens == whole.tokens[:limit]


def test_tokens_are_text(model, pruned):
    result = divergence(model, pruned, ["the cat ran", "a dog"])
    assert "".join(result.tokens) == " cat ran" + " dog"
    model.tokenizer = pruned.tokenizer = None
    ids = random_ids(1, 5)
    assert divergence(model, pruned, ids).tokens == [str(int(token)) for token in ids[0, 1:]]


def test_the_standard_error_is_that_of_the_mean_over_positions():
    kl = np.array([0.1, 0.4, 0.2, 0.9])
    result = Divergence(["a"] * 4, kl, np.array([True, False, True, True]))
    assert result.standard_error == pytest.approx(np.std(kl, ddof=1) / 2)
    assert result.agreement == 0.75
    assert math.isnan(Divergence(["a"], kl[:1], np.array([True])).standard_error)


def test_lengths_beyond_either_model_are_capped(model):
    other = tiny_model("llama-gqa-tied", tokenizer=model.tokenizer, max_position_embeddings=16)
    assert divergence(model, other, random_ids(1, 60)[0]).n == perplexity(other, random_ids(1, 60)[0]).tokens


def test_other_vocabularies_are_refused(model):
    other = tiny_model("llama", vocab_size=120)
    with pytest.raises(InputError, match="tiny llama-gqa-tied and tiny llama have different vocabularies; compare"):
        divergence(model, other, random_ids(1, 8))
    other = tiny_model("llama", tokenizer=make_tokenizer())
    divergence(model, other, random_ids(1, 8))
    other.tokenizer.add_tokens(["zebra"])
    with pytest.raises(InputError, match="different vocabularies"):
        divergence(model, other, random_ids(1, 8))


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (torch.tensor([5]), {}, "no token to predict; give at least two tokens"),
        (torch.tensor([5, 112]), {}, "this model knows 0 to 111"),
        (torch.tensor([5, 6]), {"sequence_length": 1}, "sequence_length is 1; give at least 2"),
        (torch.tensor([5, 6]), {"limit": 0}, "limit is 0; give at least 1 token, or None for all"),
    ],
)
def test_inputs_that_cannot_be_used_are_refused(model, data, options, says):
    with pytest.raises(InputError, match=says):
        divergence(model, model, data, **options)


def test_non_finite_logits_are_an_error_that_names_the_model(model):
    broken = tiny_model("llama")
    broken.module.model.norm.weight[3] = float("nan")
    with pytest.raises(NumericalError, match="logits of tiny llama are not finite on this text"):
        divergence(model, broken, random_ids(1, 8))


def test_progress_counts_windows_and_cancel_stops(model):
    calls = []
    divergence(model, model, random_ids(3, 8), progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)]

    class Event:
        def is_set(self):
            return True

    with pytest.raises(Cancelled):
        divergence(model, model, random_ids(3, 8), cancel=Event())
