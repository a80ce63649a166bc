from itertools import pairwise

import numpy as np
import pytest
import torch
from architectures import random_ids, tiny_model
from scipy.stats import chisquare

from numprune import Cancelled, InputError, NumericalError, Sampling, generate, stream_text
from numprune.generation.text import end_tokens, sample_tokens, start_token, unknown_tokens

KNOWN = 104
"""Tokens of the tokenizer; the model embeds 112."""
PROMPTS = ["the cat", "a dog and a mouse went away", "x"]


def never_ending(model):
    model.module.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    model.tokenizer.eos_token = None
    return model


@pytest.fixture
def endless(model):
    """A model that never ends a text, so that lengths are known."""
    return never_ending(model)


def end_after(model, steps, rows=None):
    """Make the model predict the end token for some rows from a step on."""
    calls = []

    def hook(module, args, output):
        calls.append(1)
        if len(calls) > steps:
            output.logits[rows if rows is not None else slice(None), :, 1] = 1e4

    model.module.register_forward_hook(hook)


def next_tokens(model, rows, **options):
    """The token after a fixed prompt, drawn `rows` times."""
    ids = random_ids(1, 4, seed=5).expand(rows, 4)
    sampling = Sampling(max_new_tokens=1, **options)
    return next(sample_tokens(model, ids, torch.ones_like(ids), sampling)).numpy()


def next_probabilities(model, temperature=1.0):
    with torch.no_grad():
        logits = model.module(random_ids(1, 4, seed=5)).logits[0, -1].double().numpy() / temperature
    logits[KNOWN:] = -np.inf
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def assert_drawn_from(tokens, probabilities):
    """Chi-square test; what is expected less than five times is pooled."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * len(tokens)
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert len(wanted) > 3
    assert chisquare(observed, wanted).pvalue > 1e-3


def test_same_seed_same_text(endless):
    first = generate(endless, PROMPTS[0], max_new_tokens=20, seed=7)
    assert generate(endless, PROMPTS[0], max_new_tokens=20, seed=7) == first
    assert generate(endless, PROMPTS[0], max_new_tokens=20, seed=8) != first
    assert first.startswith(PROMPTS[0])


def test_the_global_random_state_is_neither_read_nor_changed(endless):
    torch.manual_seed(0)
    first = generate(endless, PROMPTS, max_new_tokens=12)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert generate(endless, PROMPTS, max_new_tokens=12) == first
    assert torch.equal(torch.get_rng_state(), before)


# OPT learns a vector for every position, so that a shift by the padding shows.
@pytest.mark.parametrize("name", ["llama", "opt"])
@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.5])
def test_text_does_not_depend_on_how_prompts_are_batched(name, temperature, tokenizer):
    model = never_ending(tiny_model(name, tokenizer=tokenizer))
    options = {"max_new_tokens": 12, "temperature": temperature}
    together = generate(model, PROMPTS, seed=3, **options)
    assert together == [generate(model, prompt, seed=3 + row, **options) for row, prompt in enumerate(PROMPTS)]
    assert len(set(together)) == 3


def test_temperature_zero_takes_the_likeliest_token(endless):
    tokens = next_tokens(endless, 3, temperature=0)
    assert set(tokens) == {int(next_probabilities(endless).argmax())}


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_tokens_are_drawn_from_the_softmax(endless, temperature):
    tokens = next_tokens(endless, 4000, temperature=temperature, top_p=1.0)
    assert_drawn_from(tokens, next_probabilities(endless, temperature))


def test_later_tokens_of_a_row_are_drawn_from_the_softmax_too(endless):
    # Uniform logits, so that every step of one row draws from the same distribution.
    endless.module.model.embed_tokens.weight.zero_()
    ids = torch.zeros(60, 1, dtype=torch.long)
    steps = sample_tokens(endless, ids, torch.ones_like(ids), Sampling(max_new_tokens=60, temperature=1.0, top_p=1.0))
    tokens = torch.stack(list(steps)).flatten().numpy()
    assert_drawn_from(tokens, np.where(np.arange(112) < KNOWN, 1 / KNOWN, 0))


def test_top_k_draws_among_the_k_likeliest(endless):
    probabilities = next_probabilities(endless)
    probabilities[np.argsort(probabilities)[:-6]] = 0
    tokens = next_tokens(endless, 3000, temperature=1.0, top_p=1.0, top_k=6)
    assert set(tokens) == set(np.flatnonzero(probabilities))
    assert_drawn_from(tokens, probabilities / probabilities.sum())


@pytest.mark.parametrize("top_p", [0.2, 0.6, 0.9])
def test_top_p_draws_among_the_fewest_that_hold_the_probability(endless, top_p):
    probabilities = next_probabilities(endless)
    order = np.argsort(-probabilities)
    count = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    probabilities[order[count:]] = 0
    tokens = next_tokens(endless, 3000, temperature=1.0, top_p=top_p)
    assert set(tokens) <= set(order[:count])
    assert_drawn_from(tokens, probabilities / probabilities.sum())


def test_top_k_larger_than_the_vocabulary_changes_nothing(endless):
    options = {"max_new_tokens": 8, "top_p": 1.0, "seed": 2}
    assert generate(endless, "the", top_k=10**6, **options) == generate(endless, "the", top_k=0, **options)


def test_an_end_token_ends_the_text(model):
    end_after(model, 3)
    steps = list(stream_text(model, ["the cat"], Sampling(max_new_tokens=50, temperature=0)))
    assert len(steps) == 4
    assert steps[-1] == steps[-2]
    assert "</s>" not in steps[-1][0]


def test_rows_end_one_by_one(model):
    end_after(model, 2, rows=[0])
    ids = random_ids(2, 4)
    sampling = Sampling(max_new_tokens=6, temperature=0)
    tokens = torch.stack(list(sample_tokens(model, ids, torch.ones_like(ids), sampling)), dim=1)
    assert tokens.shape == (2, 6)
    assert int(tokens[0, 2]) == 1
    assert tokens[0, 3:].tolist() == [-1] * 3
    alone = torch.stack(list(sample_tokens(tiny_model("llama-gqa-tied"), ids[1:], torch.ones(1, 4).long(), sampling)))
    assert tokens[1].tolist() == alone[:, 0].tolist()


def test_an_end_token_at_once_gives_the_prompt_back(model):
    end_after(model, 0)
    assert generate(model, "the cat", max_new_tokens=5) == "the cat"


def test_any_of_several_end_tokens_ends_the_text(model):
    model.module.generation_config.eos_token_id = [5, 1]
    assert end_tokens(model) == {1, 5}
    end_after(model, 1)
    assert len(list(stream_text(model, ["the"], Sampling(max_new_tokens=9)))) == 2


def test_end_tokens_of_generation_config_config_and_tokenizer_all_end_a_text(model):
    model.module.generation_config.eos_token_id = [5, 6]
    model.config.eos_token_id = 7
    assert end_tokens(model) == {1, 5, 6, 7}
    for token in (5, 7, 1):

        def only(_, __, output, token=token):
            output.logits[..., token] = 1e6

        hook = model.module.register_forward_hook(only)
        assert len(list(stream_text(model, ["the"], Sampling(max_new_tokens=9)))) == 1
        hook.remove()
    assert end_tokens(never_ending(model)) == set()


@pytest.mark.parametrize(
    ("bos", "eos", "of_tokenizer", "begin"),
    [
        (None, [5, 6], {}, 5),
        (None, [5, 6], {"eos_token": "</s>"}, 1),
        (None, 5, {}, 5),
        (7, [5, 6], {"eos_token": "</s>"}, 7),
        (7, [5, 6], {"bos_token": "<s>"}, 0),
    ],
)
def test_a_text_begins_with_bos_or_else_the_first_end_token(model, bos, eos, of_tokenizer, begin):
    model.config.bos_token_id, model.config.eos_token_id = bos, eos
    for name in ("bos_token", "eos_token"):
        setattr(model.tokenizer, name, of_tokenizer.get(name))
    assert start_token(model) == begin


@pytest.mark.parametrize("temperature", [0, 1.0, 5.0])
def test_ids_without_a_token_are_not_drawn(endless, temperature):
    endless.module.lm_head.weight = torch.nn.Parameter(endless.module.lm_head.weight.clone(), requires_grad=False)
    endless.module.lm_head.weight[KNOWN:] *= 50
    ids = random_ids(4, 3)
    sampling = Sampling(max_new_tokens=20, temperature=temperature, top_p=1.0)
    for tokens in sample_tokens(endless, ids, torch.ones_like(ids), sampling):
        assert int(tokens.max()) < KNOWN
    assert unknown_tokens(endless).tolist() == list(range(KNOWN, 112))


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.4],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 1.0,
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}),
    ],
)
@pytest.mark.parametrize("prompt", [10, 31, 32, 33, 40])
def test_frequencies_that_follow_the_length_give_the_same_tokens_with_a_cache(name, changes, prompt):
    model = tiny_model(name, max_position_embeddings=64, eos_token_id=None, **changes)
    model.module.generation_config.eos_token_id = None
    ids = random_ids(1, prompt, seed=3)

    def written(use_cache):
        sampling = Sampling(max_new_tokens=50, temperature=0)
        return torch.stack(list(sample_tokens(model, ids, torch.ones_like(ids), sampling, use_cache=use_cache)), 1)

    ours = written(True)
    assert ours.shape[1] == min(50, 64 - prompt)
    assert torch.equal(ours, written(False))
    theirs = model.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=ours.shape[1])
    assert torch.equal(ours, theirs[:, prompt:])


def test_the_maximum_length_ends_the_text(endless):
    prompt = "x" * 60
    assert len(endless.tokenizer(prompt)["input_ids"]) == 60
    assert len(list(stream_text(endless, [prompt], Sampling(max_new_tokens=50)))) == 4
    with pytest.raises(InputError, match="The prompt has 64 tokens; this model reads 64 in all, so shorten it"):
        generate(endless, "x" * 64)


def test_streaming_shows_every_token_and_ends_in_the_generated_text(endless):
    sampling = Sampling(max_new_tokens=10, temperature=0.8, top_p=0.95, seed=1)
    steps = list(stream_text(endless, PROMPTS, sampling))
    assert len(steps) == 10
    for before, after in pairwise(steps):
        assert all(later.startswith(earlier) for earlier, later in zip(before, after, strict=True))
    assert steps[-1] == generate(endless, PROMPTS, max_new_tokens=10, temperature=0.8, top_p=0.95, seed=1)


def test_streaming_computes_no_more_than_was_asked_for(endless):
    calls = []
    endless.module.register_forward_hook(lambda *args: calls.append(1))
    stream = stream_text(endless, ["the"], Sampling(max_new_tokens=10))
    next(stream)
    next(stream)
    assert len(calls) == 2


def test_cancel_stops_between_tokens(endless):
    steps = []

    class Event:
        def is_set(self):
            return len(steps) == 3

    with pytest.raises(Cancelled):
        generate(endless, "the", max_new_tokens=10, progress=lambda *step: steps.append(step), cancel=Event())
    assert len(steps) == 3


def test_one_prompt_gives_one_text_and_a_list_gives_a_list(endless):
    assert isinstance(generate(endless, "the", max_new_tokens=2), str)
    assert isinstance(generate(endless, ["the"], max_new_tokens=2), list)


def test_an_empty_prompt_begins_with_the_start_token(endless):
    fed = []
    endless.module.register_forward_pre_hook(lambda m, args, kwargs: fed.append(kwargs["input_ids"]), with_kwargs=True)
    assert len(generate(endless, "", max_new_tokens=3)) > 0
    assert fed[0].tolist() == [[0]]


def test_start_token_falls_back_to_the_config_and_the_end_token(model):
    assert start_token(model) == 0
    model.tokenizer = None
    model.config.bos_token_id = 7
    assert start_token(model) == 7
    model.config.bos_token_id = None
    assert start_token(model) == 1
    model.config.eos_token_id = None
    with pytest.raises(InputError, match="no token to begin a text with; give a prompt"):
        start_token(model)


def test_progress_counts_tokens(endless):
    calls = []
    generate(endless, "the", max_new_tokens=3, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3, "writing"), (2, 3, "writing"), (3, 3, "writing")]


def test_no_prompt_is_refused(model):
    with pytest.raises(InputError, match="There is no prompt; give at least one"):
        generate(model, [])


def test_a_model_without_tokenizer_writes_no_text():
    with pytest.raises(InputError, match="no tokenizer; load a folder that has one"):
        generate(tiny_model("llama"), "the")


def test_non_finite_logits_are_an_error(model):
    model.module.model.norm.weight[3] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(NumericalError, match="logits are not finite; load it in float32 or prune less"):
            generate(model, "the", temperature=temperature)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; give at least 1"),
        ({"temperature": -0.1}, "temperature is -0.1; give 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1; give 0"),
        ({"top_p": 0.0}, "top_p is 0.0; give a number above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
)
def test_options_out_of_range_are_refused(model, options, says):
    with pytest.raises(InputError, match=says):
        generate(model, "the", **options)


def test_an_extremely_low_temperature_is_greedy(endless):
    greedy = generate(endless, "the", max_new_tokens=6, temperature=0)
    assert generate(endless, "the", max_new_tokens=6, temperature=1e-4, top_p=1.0) == greedy
