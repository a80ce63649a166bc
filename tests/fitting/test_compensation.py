import numpy as np
import pytest
import torch

from numprune import InputError, NumericalError, compensate
from numprune.fitting.compensation import relative_errors


def problem(channels=10, out=7, tokens=60, *, seed=0):
    """Correlated inputs X (tokens, in) and a weight (out, in), float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, channels, generator=generator, dtype=torch.float64)
    x = x @ (torch.eye(channels) + 0.4 * torch.randn(channels, channels, generator=generator)).double()
    return torch.randn(out, channels, generator=generator, dtype=torch.float64), x


KEEP = [0, 2, 3, 7, 9]
PRUNED = [1, 4, 5, 6, 8]


def gamma_of(gram, damping):
    return damping * float(gram.diagonal().mean())


@pytest.mark.parametrize("damping", [0.0, 1e-3, 0.5])
def test_equals_theorem_three_with_an_explicit_inverse(damping):
    weight, x = problem()
    gram = x.T @ x
    inverse = torch.linalg.inv(gram + gamma_of(gram, damping) * torch.eye(10, dtype=torch.float64))
    selector = torch.eye(10, dtype=torch.float64)[:, PRUNED]
    delta = -inverse @ selector @ torch.linalg.inv(selector.T @ inverse @ selector) @ selector.T @ weight.T
    updated = weight.T + delta
    torch.testing.assert_close(updated[PRUNED], torch.zeros(5, 7, dtype=torch.float64), rtol=0, atol=1e-9)
    actual = compensate(weight, gram, KEEP, damping=damping)
    torch.testing.assert_close(actual, updated[KEEP].T, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("damping", [1e-3, 0.1])
def test_equals_damped_least_squares(damping):
    weight, x = problem()
    gram = x.T @ x
    root = np.sqrt(gamma_of(gram, damping))
    stacked = np.vstack([x[:, KEEP].numpy(), root * np.eye(len(KEEP))])
    target = np.vstack([(x @ weight.T).numpy(), root * weight[:, KEEP].numpy().T])
    solution, *_ = np.linalg.lstsq(stacked, target, rcond=None)
    np.testing.assert_allclose(
        compensate(weight, gram, KEEP, damping=damping).numpy(), solution.T, rtol=1e-9, atol=1e-10
    )


def test_equals_least_squares_without_damping():
    weight, x = problem()
    solution, *_ = np.linalg.lstsq(x[:, KEEP].numpy(), (x @ weight.T).numpy(), rcond=None)
    actual = compensate(weight, x.T @ x, KEEP, damping=0.0)
    np.testing.assert_allclose(actual.numpy(), solution.T, rtol=1e-9, atol=1e-10)


def test_loss_is_the_optimal_loss_of_the_pruned_set():
    weight, x = problem()
    gram = x.T @ x
    updated = compensate(weight, gram, KEEP, damping=0.0)
    loss = 0.5 * ((x @ weight.T - x[:, KEEP] @ updated.T) ** 2).sum()
    block = torch.linalg.inv(gram)[PRUNED][:, PRUNED]
    w_p = weight.T[PRUNED]
    expected = 0.5 * torch.trace(w_p.T @ torch.linalg.inv(block) @ w_p)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_weights_are_better(seed):
    weight, x = problem(seed=seed)
    updated = compensate(weight, x.T @ x, KEEP, damping=0.0)
    noise = torch.randn(updated.shape, generator=torch.Generator().manual_seed(seed)).double() * 1e-3

    def loss(kept_weight):
        return float(((x @ weight.T - x[:, KEEP] @ kept_weight.T) ** 2).sum())

    assert loss(updated) < loss(updated + noise)
    assert loss(updated) < loss(updated - noise)
    assert loss(updated) < loss(weight[:, KEEP])


def test_relative_error_is_the_error_of_the_output():
    weight, x = problem()
    gram = x.T @ x
    for kept_weight in (weight[:, KEEP], compensate(weight, gram, KEEP)):
        lost = torch.linalg.norm(x @ weight.T - x[:, KEEP] @ kept_weight.T) / torch.linalg.norm(x @ weight.T)
        assert relative_errors(weight, gram, KEEP, [kept_weight])[0] == pytest.approx(float(lost), rel=1e-9)


def test_relative_error_at_its_ends():
    weight, x = problem()
    gram = x.T @ x
    everything = list(range(10))
    assert relative_errors(weight, gram, everything, [weight])[0] == 0.0
    assert relative_errors(weight, gram, [], [weight[:, []]])[0] == pytest.approx(1.0, rel=1e-12)
    assert relative_errors(torch.zeros(7, 10), gram, KEEP, [torch.zeros(7, 5)])[0] == 0.0


def test_pruned_channels_that_copy_kept_ones_cost_nothing():
    weight, x = problem()
    x[:, PRUNED] = x[:, KEEP] * 2
    gram = x.T @ x
    updated = compensate(weight, gram, KEEP, damping=0.0)
    torch.testing.assert_close(updated, weight[:, KEEP] + 2 * weight[:, PRUNED], rtol=1e-9, atol=1e-10)
    assert relative_errors(weight, gram, KEEP, [updated])[0] < 1e-6


def test_uncorrelated_channels_leave_the_weights_as_they_are():
    weight, _ = problem()
    gram = torch.diag(torch.arange(1.0, 11.0))
    torch.testing.assert_close(compensate(weight, gram, KEEP), weight[:, KEEP], rtol=1e-12, atol=1e-12)


def test_keeping_all_or_none():
    weight, x = problem()
    gram = x.T @ x
    assert torch.equal(compensate(weight, gram, range(10)), weight)
    assert compensate(weight, gram, []).shape == (7, 0)


def test_order_of_the_kept_channels_is_the_order_of_the_result():
    weight, x = problem()
    gram = x.T @ x
    backwards = compensate(weight, gram, KEEP[::-1])
    torch.testing.assert_close(backwards.flip(1), compensate(weight, gram, KEEP), rtol=1e-9, atol=1e-10)


def test_damping_lets_a_singular_gram_be_solved():
    weight, x = problem(tokens=3)
    gram = x.T @ x
    with pytest.raises(NumericalError, match="higher damping"):
        compensate(weight, gram * 0, KEEP, damping=0.0)
    assert bool(torch.isfinite(compensate(weight, gram, KEEP, damping=0.01)).all())


def test_half_precision_weights_are_solved_in_float64():
    weight, x = problem()
    gram = x.T @ x
    half = weight.to(torch.bfloat16)
    assert torch.equal(compensate(half, gram, KEEP), compensate(half.double(), gram, KEEP))


def test_inputs_are_left_alone():
    weight, x = problem()
    gram = x.T @ x
    before = weight.clone(), gram.clone()
    updated = compensate(weight, gram, KEEP)
    relative_errors(weight, gram, KEEP, [updated])[0]
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gram": torch.eye(9)}, r"needs \(10, 10\)"),
        ({"weight": torch.ones(10)}, r"expected \(out, in\)"),
        ({"keep": [0, 10]}, "from 0 to 9"),
        ({"keep": [-1, 3]}, "from 0 to 9"),
        ({"keep": [3, 3]}, "different indices"),
        ({"damping": -0.1}, "damping is -0.1"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"damping": float("inf")}, "damping is inf"),
    ],
)
def test_wrong_arguments_are_refused(changes, says):
    weight, x = problem()
    with pytest.raises(InputError, match=says):
        compensate(**{"weight": weight, "gram": x.T @ x, "keep": KEEP, **changes})


@pytest.mark.parametrize("which", ["weight", "gram"])
def test_non_finite_inputs_are_refused(which):
    weight, x = problem()
    arguments = {"weight": weight, "gram": x.T @ x}
    arguments[which][0, 0] = float("inf")
    with pytest.raises(NumericalError, match="non-finite"):
        compensate(**arguments, keep=KEEP)
