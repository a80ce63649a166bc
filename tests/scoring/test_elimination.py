"""Greedy elimination, against the compensation it prices, tried on every unit."""

import threading

import numpy as np
import pytest
import torch

from numprune import Cancelled, InputError, NumericalError, compensate, score
from numprune.scoring.elimination import PENDING, eliminate


def layer(units=6, width=1, out=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(80, units * width, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(units * width, units * width, generator=generator, dtype=torch.float64)
    return torch.randn(out, units * width, generator=generator, dtype=torch.float64), x.T @ x


def loss_without(weight, gram, gone, width, damping):
    """||X W - X_S W'||² + gamma ||δW||² with the weights of theorem 3."""
    size = weight.shape[1]
    channels = [unit * width + i for unit in gone for i in range(width)]
    keep = [j for j in range(size) if j not in channels]
    damped = gram + damping * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    change = weight.clone()
    if keep:
        # The removed channels are priced with the damping too, so the damped matrix stands for the Gram matrix.
        change[:, keep] -= compensate(weight, damped, keep, damping=0.0)
    return float(((change @ damped) * change).sum())


@pytest.mark.parametrize("width", [1, 3])
def test_each_step_takes_the_unit_whose_compensated_loss_is_least(width):
    weight, gram = layer(width=width)
    order, losses = eliminate(weight, gram, width=width, damping=0.01)
    gone = []
    for step, unit in enumerate(order.tolist()):
        tried = {u: loss_without(weight, gram, [*gone, u], width, 0.01) for u in range(6) if u not in gone}
        assert min(tried, key=tried.get) == unit
        gone.append(unit)
        assert float(losses[step]) == pytest.approx(tried[unit], rel=1e-9)


@pytest.mark.parametrize(("units", "width"), [(300, 1), (60, 5), (4, 80)])
def test_updates_that_wait_change_nothing(units, width):
    """More channels than may be pending: some steps read matrices that were brought up to date, most do not."""
    assert units * width > 2 * PENDING
    weight, gram = layer(units=units, width=width)
    order, losses = eliminate(weight, gram, width=width)
    assert sorted(order.tolist()) == list(range(units))
    assert (losses.diff() >= 0).all()
    for end in {1, units // 2, units - 1, units}:
        removed = order[:end].tolist()
        alone = loss_without(weight, gram, removed, width, 0.01)
        assert float(losses[end - 1]) == pytest.approx(alone, rel=1e-9)
        others = [unit for unit in range(units) if unit not in removed[:-1]][:8]
        assert all(
            alone <= loss_without(weight, gram, [*removed[:-1], unit], width, 0.01) * (1 + 1e-9) for unit in others
        )


def test_wide_modules_lose_one_unit_a_step():
    """A module wider than any limit on steps: losses rise at every step and none is shared by two units."""
    weight, gram = layer(units=1300, out=8)
    order, losses = eliminate(weight, gram + torch.eye(1300, dtype=torch.float64))
    assert sorted(order.tolist()) == list(range(1300))
    assert (losses.diff() > 0).all()


def test_elimination_can_be_stopped_and_followed():
    weight, gram = layer(units=300)
    told, stop = [], threading.Event()

    def progress(done, total, what):
        told.append((done, total, what))
        stop.set()

    with pytest.raises(Cancelled):
        eliminate(weight, gram, progress=progress, cancel=stop)
    assert told == [(PENDING, 300, "eliminating units")]


def test_a_copy_of_a_channel_goes_before_any_other():
    weight, gram = layer(units=8)
    x = torch.linalg.cholesky(gram).T.clone()
    x[:, 5] = 2 * x[:, 2]
    assert eliminate(weight, x.T @ x, damping=1e-6)[0][0] in (2, 5)


def test_a_module_that_never_fires_has_nothing_to_lose():
    order, losses = eliminate(torch.ones(3, 4), torch.zeros(4, 4))
    assert order.tolist() == [0, 1, 2, 3]
    assert losses.tolist() == [0, 0, 0, 0]


def test_wrong_input_is_refused():
    weight, gram = layer()
    for changes in ({"width": 4}, {"damping": 0.0}):
        with pytest.raises(InputError):
            eliminate(weight, gram, **changes)
    with pytest.raises(InputError):
        eliminate(weight, gram[:3, :3])
    gram[0, 0] = float("nan")
    with pytest.raises(NumericalError):
        eliminate(weight, gram)


def greedy_by_trial(block, gram):
    """Units in the order in which they go when every one is tried at every step, and the loss after each step."""
    weight, order, losses = block.last.weight.double(), [], []
    while len(order) < block.units:
        left = [unit for unit in range(block.units) if unit not in order]
        tried = {unit: loss_without(weight, gram, [*order, unit], block.width, 0.01) for unit in left}
        order.append(min(tried, key=tried.get))
        losses.append(tried[order[-1]])
    return order, losses


def test_newton_greedy_keeps_the_values_and_takes_the_greedy_order(model, stats):
    newton, dealt = score(model, stats), score(model, stats, scorer="newton_greedy")
    for block in model.blocks:
        units = dealt.modules[block.key].units
        np.testing.assert_allclose(np.sort(units), np.sort(newton.modules[block.key].units), rtol=1e-12)
        order, _ = greedy_by_trial(block, stats.modules[block.key].gram)
        assert np.argsort(units, kind="stable").tolist() == order


def test_osscar_scores_are_shares_of_the_output_lost(model, stats):
    table = score(model, stats, scorer="osscar")
    for block in model.blocks:
        order, losses = greedy_by_trial(block, stats.modules[block.key].gram)
        shares = np.array(losses) / losses[-1]
        np.testing.assert_allclose(table.modules[block.key].units[order], shares, rtol=1e-8)
