import json
import math
import pickle

import numpy as np
import pytest
import torch
from architectures import random_ids, tiny_model

from numprune import Cancelled, InputError, NumericalError, Perplexity, perplexity
from numprune.evaluation.perplexity import cut_windows, limited
from numprune.models.prediction import window_losses


@torch.no_grad()
def loss_of(model, context, token):
    """-log p(token | context), one token at a time and nothing else in the batch."""
    logits = model.module(context[None]).logits[0, -1].double()
    return float(torch.logsumexp(logits, 0) - logits[token])


def by_hand(model, rows, length, stride, start=()):
    """Summed loss and predicted tokens of every window: a token belongs to the first window that holds it and
    at least one token before it, be it of the start that every window has."""
    start, windows = torch.tensor(start, dtype=torch.long), {}
    for document, row in enumerate(rows):
        for token in range(len(row)):
            holding = [k for k in range(0, len(row), stride) if k <= token < k + length - len(start)]
            begins = [k for k in holding if len(start) or k < token]
            if begins:
                context = torch.cat([start, row[begins[0] : token]])
                windows.setdefault((document, begins[0]), []).append(loss_of(model, context, int(row[token])))
    return np.array([sum(losses) for losses in windows.values()]), np.array([len(x) for x in windows.values()])


@pytest.mark.parametrize(
    ("lengths", "length", "stride"),
    [
        ([12], 12, 12),
        ([24], 8, 8),
        ([23], 8, 8),
        ([25], 8, 8),  # the last window holds one token and predicts none
        ([23], 8, 4),
        ([23], 8, 3),
        ([23], 8, 1),
        ([23], 8, 7),
        ([9, 2, 1, 17], 8, 5),
        ([3, 4], 8, 8),
    ],
)
@pytest.mark.parametrize("start", [(), (0,), (0, 1)])
def test_every_token_is_predicted_once_from_its_own_window(lengths, length, stride, start, tokenizer):
    model = tiny_model("llama")
    stride = min(stride, length - len(start))
    rows = [random_ids(1, count, seed=i)[0] for i, count in enumerate(lengths)]
    losses, counts = by_hand(model, rows, length, stride, start)

    class Tokenizer:
        def __call__(self, texts, add_special_tokens=True, **kwargs):
            framed = list(start) if add_special_tokens else []
            if texts == "a":
                return {"input_ids": [*framed, 7]}
            return {"input_ids": [[*framed, *rows[int(text)].tolist()] for text in texts]}

        def convert_ids_to_tokens(self, ids):
            return tokenizer.convert_ids_to_tokens(ids)

    model.tokenizer = Tokenizer()
    result = perplexity(model, [str(i) for i in range(len(rows))], sequence_length=length, stride=stride)
    assert result.start == result.to_dict()["start"] == "".join(["<s>", "</s>"][: len(start)])
    assert result.tokens == counts.sum()
    assert result.windows == len(counts)
    assert result.nll == pytest.approx(losses.sum() / counts.sum(), rel=1e-5)
    assert float(result) == pytest.approx(math.exp(losses.sum() / counts.sum()), rel=1e-4)
    assert (result.sequence_length, result.stride) == (length, stride)


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt-neox-parallel", "opt", "gemma3"])
@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_padding_and_batches_do_not_matter(name, batch_size, tokenizer):
    model = tiny_model(name, tokenizer=tokenizer)
    texts = ["the cat", "a dog and another dog and a mouse", "x y", "the end of it all, they said and went away"]
    expected = [perplexity(model, [text], sequence_length=16, stride=8, batch_size=1) for text in texts]
    result = perplexity(model, texts, sequence_length=16, stride=8, batch_size=batch_size)
    assert result.tokens == sum(part.tokens for part in expected)
    # Every token weighs the same, whatever the length of its document.
    assert result.nll == pytest.approx(sum(part.nll * part.tokens for part in expected) / result.tokens, rel=1e-5)


def test_documents_never_share_a_window(model):
    together = perplexity(model, ["the cat sat", "and a dog"], sequence_length=32)
    assert together.windows == 2
    joined = perplexity(model, ["the cat satand a dog"], sequence_length=32)
    assert joined.windows == 1
    assert together.tokens == joined.tokens - 1
    assert together.nll != joined.nll


def test_rows_of_a_token_matrix_are_documents_and_a_vector_is_one(model):
    ids = random_ids(4, 16)
    assert perplexity(model, ids, sequence_length=16).tokens == 4 * 15
    whole = perplexity(model, ids.reshape(-1), sequence_length=64)
    assert (whole.tokens, whole.windows) == (63, 1)


def test_files_give_what_lists_give(model, tmp_path):
    texts = ["the cat sat", "and a dog ran away"]
    expected = perplexity(model, texts, sequence_length=8)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(texts))
    assert perplexity(model, tmp_path / "a.jsonl", sequence_length=8) == expected
    assert perplexity(model, tmp_path / "a.txt", sequence_length=8) == expected


def test_overlapping_windows_see_more_and_predict_the_borders(model):
    ids = random_ids(1, 60)
    apart, overlapping = (perplexity(model, ids, sequence_length=12, stride=stride) for stride in (12, 6))
    assert apart.tokens == 60 - 5
    assert overlapping.tokens == 59


@torch.no_grad()
@pytest.mark.parametrize(("windows", "rest"), [(5, 0), (5, 9)])
def test_whole_windows_give_the_figure_of_the_usual_code(model, windows, rest):
    """As GPTQ's evaluation computes it: the mean loss of each window's next tokens, times its length, over the text."""
    length = 16
    ids = random_ids(1, windows * length + rest, seed=4)
    total = 0.0
    for index in range(windows):
        window = ids[:, index * length : (index + 1) * length]
        logits = model.module(window).logits
        total += float(torch.nn.functional.cross_entropy(logits[0, :-1], window[0, 1:])) * length
    usual = math.exp(total / (windows * length))
    result = perplexity(model, ids, sequence_length=length)
    assert result.windows == windows + (rest > 1)
    if rest:
        last = perplexity(model, ids[:, windows * length :], sequence_length=length)
        whole = math.log(usual) * windows * (length - 1) + last.nll * last.tokens
        assert result.nll == pytest.approx(whole / result.tokens, rel=1e-5)
    else:
        assert result == pytest.approx(usual, rel=1e-5)


def test_standard_error_is_that_of_the_mean_over_equal_windows(model):
    ids = random_ids(9, 16)
    result = perplexity(model, ids, sequence_length=16)
    means = [perplexity(model, row, sequence_length=16).nll for row in ids]
    assert result.nll == pytest.approx(np.mean(means), rel=1e-6)
    assert result.standard_error == pytest.approx(np.std(means, ddof=1) / 3, rel=1e-4)


def test_standard_error_of_unequal_windows_is_that_of_a_ratio():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 60, 4000)
    errors = []
    for _ in range(200):
        chosen = rng.choice(counts, 80)
        losses = chosen * 3 + rng.normal(0, 0.5, 80) * np.sqrt(chosen) * 3
        errors.append(Perplexity.of(torch.tensor(losses), torch.tensor(chosen, dtype=torch.float64), 64, 64))
    # What the formula says of one sample is what 200 samples really scatter by.
    scatter = np.std([value.nll for value in errors], ddof=1)
    assert np.mean([value.standard_error for value in errors]) == pytest.approx(scatter, rel=0.2)


def test_one_window_has_no_standard_error(model):
    result = perplexity(model, random_ids(1, 16), sequence_length=16)
    assert math.isnan(result.standard_error)
    assert result.to_dict()["standard_error"] is None


def test_it_is_a_float(model):
    result = perplexity(model, random_ids(3, 16), sequence_length=16)
    assert isinstance(result, float)
    assert result == math.exp(result.nll)
    assert f"{result:.3f}" == f"{math.exp(result.nll):.3f}"
    assert result - 1 == math.exp(result.nll) - 1
    assert 1 < result < math.inf
    plain = result.to_dict()
    assert plain["perplexity"] == float(result)
    protocol = {"windows", "sequence_length", "stride", "start"}
    assert set(plain) == {"perplexity", "tokens", "nll", "standard_error"} | protocol
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    again = pickle.loads(pickle.dumps(result))
    assert (again, again.nll, again.windows) == (result, result.nll, result.windows)


def test_a_loss_too_large_for_a_float_is_infinite():
    result = Perplexity.of(torch.tensor([8000.0, 9000.0]), torch.tensor([10.0, 10.0]), 11, 11)
    assert result == math.inf
    assert result.nll == 850
    assert result.to_dict()["perplexity"] is None


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(model):
    model.module.model.embed_tokens.weight.zero_()
    assert perplexity(model, random_ids(4, 16), sequence_length=8) == pytest.approx(112, rel=1e-5)


def test_a_length_beyond_the_model_is_capped(model):
    result = perplexity(model, random_ids(1, 200))
    assert (result.sequence_length, result.stride) == (64, 64)


def test_the_model_is_left_in_peace(model, dense_state):
    perplexity(model, random_ids(4, 16))
    state = model.module.state_dict()
    assert all(torch.equal(state[name], dense_state[name]) for name in dense_state)
    assert not model.module.training


def test_progress_counts_windows_and_cancel_stops(model):
    calls = []
    perplexity(model, random_ids(5, 16), sequence_length=16, batch_size=2, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(2, 5), (4, 5), (5, 5)]

    class Event:
        def is_set(self):
            return len(calls) == 4

    with pytest.raises(Cancelled):
        perplexity(model, random_ids(5, 16), batch_size=1, progress=lambda *call: calls.append(call), cancel=Event())
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sequence_length": 1}, "sequence_length is 1; give at least 2"),
        ({"sequence_length": 0}, "sequence_length is 0"),
        ({"stride": 0}, "stride is 0; give a number from 1 to the tokens of text in a window, 64"),
        ({"stride": -3}, "stride is -3"),
        ({"stride": 65}, "stride is 65"),
        ({"sequence_length": 8, "stride": 9}, "the tokens of text in a window, 8"),
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
        ({"batch_size": -1}, "batch_size is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(model, options, says):
    with pytest.raises(InputError, match=says):
        perplexity(model, random_ids(2, 16), **options)


@pytest.mark.parametrize("data", [torch.tensor([5]), torch.tensor([[5], [6]])])
def test_text_without_a_token_to_predict_is_refused(model, data):
    with pytest.raises(InputError, match="no token to predict; give at least two tokens"):
        perplexity(model, data)


@pytest.mark.parametrize("bad", [-1, 112])
def test_token_ids_outside_the_vocabulary_are_refused(model, bad):
    ids = random_ids(2, 16)
    ids[0, 0] = bad
    with pytest.raises(InputError, match=f"Token ids run from .*{bad}.*; this model knows 0 to 111"):
        perplexity(model, ids)


def test_non_finite_logits_are_an_error(model):
    model.module.model.norm.weight[3] = float("nan")
    with pytest.raises(NumericalError, match="logits are not finite on this text; load it in float32 or prune less"):
        perplexity(model, random_ids(2, 16))


def test_self_is_no_text_for_perplexity(model):
    with pytest.raises(InputError, match="'self' is neither a file nor a dataset name"):
        perplexity(model, "self")


@pytest.mark.parametrize("stride", [None, 5])
def test_the_first_tokens_alone_can_be_measured(model, stride):
    """As the text cut off there, whose windows are the same."""
    ids = random_ids(1, 61)[0]
    for most in (1, 9, 10, 23, 1000):
        measured = perplexity(model, ids, sequence_length=12, stride=stride, max_tokens=most)
        counted = [len(window) - begin for window, begin in cut_windows(ids, 12, stride or 12)]
        assert measured.tokens == min(most, sum(counted))
        if measured.tokens < sum(counted):
            windows = limited(cut_windows(ids, 12, stride or 12), most)
            losses, counts = window_losses(model, windows)
            assert measured.nll == pytest.approx(float(losses.sum() / counts.sum()))
    with pytest.raises(InputError, match="max_tokens is 0; give at least 1"):
        perplexity(model, ids, max_tokens=0)


def test_every_window_begins_with_bos_where_the_tokenizer_adds_it(framing_tokenizer):
    model = tiny_model("llama", tokenizer=framing_tokenizer)
    text = "the cat sat and a dog ran away, and then it came back again"
    ids = torch.tensor(framing_tokenizer(text, add_special_tokens=False)["input_ids"])
    losses = [loss_of(model, torch.cat([torch.tensor([0]), ids[k - k % 7 : k]]), int(ids[k])) for k in range(len(ids))]
    measured = perplexity(model, [text], sequence_length=8)
    assert measured.nll == pytest.approx(np.mean(losses), rel=1e-5)
    assert (measured.tokens, measured.stride, measured.start) == (len(ids), 7, "<s>")
    # Otherwise the document alone has it, and the windows behind the first go on without.
    whole = torch.cat([torch.tensor([0]), ids])
    plain = perplexity(model, [text], sequence_length=8, bos=False)
    assert plain.nll == perplexity(model, whole, sequence_length=8).nll != measured.nll
    assert plain.start == ""


def test_the_longest_windows_run_first_so_that_the_time_left_is_not_told_too_low(monkeypatch):
    model, lengths = tiny_model("llama"), []

    def losses(model, windows):
        lengths.extend(len(window) for window, _ in windows)
        return window_losses(model, windows)

    monkeypatch.setattr("numprune.evaluation.perplexity.window_losses", losses)
    perplexity(model, torch.arange(20), sequence_length=8, batch_size=1)
    assert lengths == [8, 8, 4]
