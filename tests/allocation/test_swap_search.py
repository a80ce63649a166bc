"""Swaps, against the compensation they are meant for, tried on every exchange and every set of units."""

from itertools import combinations

import pytest
import torch

from numprune import InputError, NumericalError, compensate
from numprune.allocation.swap_search import _Search, search_swaps
from numprune.scoring.elimination import eliminate

UNITS, KEPT = 10, 5
CASES = pytest.mark.parametrize(("width", "seed"), [(1, 2), (1, 5), (1, 7), (3, 1), (3, 2), (3, 6)])


def layer(width=1, seed=0, out=4):
    generator = torch.Generator().manual_seed(seed)
    size = UNITS * width
    x = torch.randn(80, size, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(out, size, generator=generator, dtype=torch.float64), x.T @ x


def loss_of(weight, gram, keep, width=1, damping=0.01):
    """||X W - X_S W'||² + gamma ||δW||² with the weights of theorem 3."""
    size = weight.shape[1]
    damped = gram + damping * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    channels = [unit * width + i for unit in keep for i in range(width)]
    change = weight.clone()
    change[:, channels] -= compensate(weight, damped, channels, damping=0.0)
    return float(((change @ damped) * change).sum())


def greedy(weight, gram, width):
    return sorted(eliminate(weight, gram, width=width)[0][-KEPT:].tolist())


@CASES
@pytest.mark.parametrize("swaps", [1, 3, 100])
def test_the_loss_falls_until_no_exchange_lowers_it(width, seed, swaps):
    weight, gram = layer(width, seed)
    start = greedy(weight, gram, width)
    kept, before, after = search_swaps(weight, gram, start, width=width, swaps=swaps, rounds=1000)
    assert len(kept) == KEPT
    assert kept == tuple(sorted(kept))
    assert before == pytest.approx(loss_of(weight, gram, start, width), rel=1e-9)
    assert after == pytest.approx(loss_of(weight, gram, kept, width), rel=1e-9)
    assert after <= before
    others = set(range(UNITS)) - set(kept)
    for gone in kept:
        for back in others:
            tried = [back if unit == gone else unit for unit in kept]
            assert loss_of(weight, gram, tried, width) >= after * (1 - 1e-8)


@CASES
def test_of_eight_random_starts_one_ends_at_the_best_of_all_sets(width, seed):
    weight, gram = layer(width, seed)
    best = min(loss_of(weight, gram, keep, width) for keep in combinations(range(UNITS), KEPT))
    afters = []
    for attempt in range(8):
        start = torch.randperm(UNITS, generator=torch.Generator().manual_seed(attempt))[:KEPT].tolist()
        _, before, after = search_swaps(weight, gram, start, width=width, swaps=3, rounds=1000)
        assert after <= before
        afters.append(after)
    assert min(afters) == pytest.approx(best, rel=1e-9)


def test_greedy_selection_is_beaten_where_it_is_not_the_best():
    weight, gram = layer(1, 2)
    start = greedy(weight, gram, 1)
    best = min(combinations(range(UNITS), KEPT), key=lambda keep: loss_of(weight, gram, keep))
    assert tuple(start) != best
    assert search_swaps(weight, gram, start, swaps=3)[0] == best


def test_one_round_of_several_units_takes_the_cheapest_and_brings_back_the_dearest():
    weight, gram = layer(1, 7)
    start = (0, 1, 2, 3, 4)
    alone = {gone: loss_of(weight, gram, [unit for unit in start if unit != gone]) for gone in start}
    left = sorted(sorted(start, key=alone.get)[2:])
    gain = {back: loss_of(weight, gram, [*left, back]) for back in range(UNITS) if back not in left}
    expected = sorted([*left, *sorted(gain, key=gain.get)[:2]])
    assert loss_of(weight, gram, expected) < loss_of(weight, gram, start)
    h = gram + 0.01 * gram.diagonal().mean() * torch.eye(UNITS, dtype=torch.float64)
    search = _Search(h, weight.T, 1, start, ())
    assert search.improve_together(2)
    assert search.kept.nonzero()[:, 0].tolist() == expected
    assert search.loss == pytest.approx(loss_of(weight, gram, expected), rel=1e-9)


@pytest.mark.parametrize("width", [1, 3])
def test_fixed_units_stay_where_they_are(width):
    weight, gram = layer(width, 2)
    start = greedy(weight, gram, width)
    free, _, _ = search_swaps(weight, gram, start, width=width, rounds=1000)
    moved = set(start) ^ set(free)
    assert moved
    fixed = tuple(moved)
    kept, before, after = search_swaps(weight, gram, start, width=width, rounds=1000, fixed=fixed)
    assert {unit: unit in kept for unit in fixed} == {unit: unit in start for unit in fixed}
    assert after <= before
    assert search_swaps(weight, gram, start, width=width, fixed=range(UNITS))[0] == tuple(start)


def test_nothing_to_exchange_is_left_alone():
    weight, gram = layer()
    for keep in (range(UNITS), ()):
        kept, before, after = search_swaps(weight, gram, list(keep))
        assert kept == tuple(keep)
        assert before == after
    assert search_swaps(torch.ones(3, 4), torch.zeros(4, 4), [2, 1]) == ((1, 2), 0.0, 0.0)


def test_wrong_input_is_refused():
    weight, gram = layer()
    changes = ({"width": 4}, {"damping": -1.0}, {"swaps": 0}, {"rounds": 0}, {"fixed": [10]})
    for each in changes:
        with pytest.raises(InputError):
            search_swaps(weight, gram, [0, 1], **each)
    for keep in ([0, 0], [10], [-1]):
        with pytest.raises(InputError, match="keep must hold"):
            search_swaps(weight, gram, keep)
    gram[0, 0] = float("nan")
    with pytest.raises(NumericalError, match="non-finite"):
        search_swaps(weight, gram, [0, 1])
