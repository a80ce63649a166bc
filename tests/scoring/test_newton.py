import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from numprune import InputError, NumericalError
from numprune.scoring.newton import numerical_score

SOLVERS = ["closed_form", "newton", "boxed"]


def problem(channels=8, out=12, tokens=40, *, seed=0):
    """weight (out, in) and XᵀX (in, in) with channels of very different strength, float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, channels, generator=generator, dtype=torch.float64)
    x = torch.randn(tokens, channels, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    x *= torch.linspace(0.1, 2, channels, dtype=torch.float64)
    return weight, x, x.T @ x / (x**2).sum()


def objective(z, weight, x, ratio, penalty):
    """Equation as the paper writes it, column by column of W, in numpy: value and gradient by differences of X."""
    w, data = weight.numpy().T, x.numpy() / np.sqrt((x.numpy() ** 2).sum())
    residual = data @ w - data @ (z[:, None] * w)
    gap = z.sum() - (1 - ratio) * len(z)
    value = 0.5 * (residual**2).sum() + 0.5 * penalty * gap**2
    gradient = -((data.T @ residual) * w).sum(1) + penalty * gap
    return value, gradient


def test_two_channels_by_hand():
    # A = diag(1, 4), D - r = 1, penalty 1: A⁻¹1 = (1, 1/4), s = 5/4, c = 1 / (1 + 5/4) = 4/9.
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    scores = numerical_score(weight, gram, ratio=0.5, penalty=1.0, damping=0.0)
    torch.testing.assert_close(scores, torch.tensor([5 / 9, 8 / 9], dtype=torch.float64), rtol=1e-12, atol=0)


def test_correlated_channels_by_hand():
    # A = [[2, 1], [1, 1]], A⁻¹1 = (0, 1), s = 1, D - r = 1/2, penalty 3: c = 1.5 / 4.
    weight = torch.tensor([[1.0, 1.0]])
    gram = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    scores = numerical_score(weight, gram, ratio=0.25, penalty=3.0, damping=0.0)
    torch.testing.assert_close(scores, torch.tensor([1.0, 0.625], dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("penalty", [1e-2, 1.0, 1e3])
def test_closed_form_equals_fifty_newton_steps(ratio, penalty):
    weight, _, gram = problem(24)
    closed = numerical_score(weight, gram, ratio=ratio, penalty=penalty)
    loop = numerical_score(weight, gram, ratio=ratio, penalty=penalty, solver="newton", steps=50)
    assert float(((closed - loop) / loop).abs().max()) <= 1e-6


def test_one_newton_step_is_already_the_optimum():
    weight, _, gram = problem()
    one = numerical_score(weight, gram, ratio=0.4, solver="newton", steps=1)
    many = numerical_score(weight, gram, ratio=0.4, solver="newton", steps=50)
    torch.testing.assert_close(one, many, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solver", ["closed_form", "newton"])
@pytest.mark.parametrize("penalty", [0.1, 1.0, 10.0])
def test_score_minimises_the_papers_objective(solver, penalty):
    weight, x, gram = problem()
    z = numerical_score(weight, gram, ratio=0.3, penalty=penalty, solver=solver, damping=1e-14).numpy()
    value, gradient = objective(z, weight, x, 0.3, penalty)
    assert np.abs(gradient).max() < 1e-9
    found = minimize(objective, np.ones(8), (weight, x, 0.3, penalty), jac=True, method="BFGS", options={"gtol": 1e-10})
    assert value <= found.fun + 1e-12
    np.testing.assert_allclose(z, found.x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("channels", [8, 48])
def test_boxed_score_is_the_minimum_inside_the_box(seed, penalty, channels):
    weight, x, gram = problem(channels, tokens=5 * channels, seed=seed)
    ratio = 0.1 + 0.07 * seed
    z = numerical_score(weight, gram, ratio=ratio, penalty=penalty, solver="boxed", steps=200, damping=1e-13).numpy()
    value, gradient = objective(z, weight, x, ratio, penalty)
    scale = np.abs(objective(np.ones(channels), weight, x, ratio, penalty)[1]).max()
    assert z.min() >= 0
    assert z.max() <= 1
    # KKT: no force inside, outward force at the bounds.
    assert np.abs(gradient[(z > 0) & (z < 1)]).max(initial=0) < 1e-6 * scale
    assert gradient[z == 0].min(initial=0) > -1e-6 * scale
    assert gradient[z == 1].max(initial=0) < 1e-6 * scale
    found = minimize(
        objective,
        np.full(channels, 0.5),
        (weight, x, ratio, penalty),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, 1)] * channels,
        options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 10000},
    )
    assert value <= found.fun + 1e-9 * scale


@pytest.mark.parametrize("seed", range(12))
def test_the_box_binds_in_the_cases_above(seed):
    weight, _, gram = problem(seed=seed)
    free = numerical_score(weight, gram, ratio=0.1 + 0.07 * seed)
    assert float(free.min()) < 0 or float(free.max()) > 1


def test_boxed_score_equals_closed_form_where_the_box_does_not_bind():
    weight, gram = torch.eye(6), torch.eye(6) + 0.01
    boxed = numerical_score(weight, gram, ratio=0.5, solver="boxed")
    torch.testing.assert_close(boxed, numerical_score(weight, gram, ratio=0.5), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.75])
def test_mean_score_tends_to_one_minus_ratio_as_the_penalty_grows(ratio):
    weight, _, gram = problem()
    gaps = [
        abs(float(numerical_score(weight, gram, ratio=ratio, penalty=penalty).mean()) - (1 - ratio))
        for penalty in (1e-2, 1.0, 1e2, 1e6)
    ]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-5


def test_order_depends_on_neither_ratio_nor_penalty():
    weight, _, gram = problem(32)
    orders = {
        tuple(numerical_score(weight, gram, ratio=ratio, penalty=penalty).argsort().tolist())
        for ratio in (0.05, 0.5, 0.95)
        for penalty in (0.01, 1.0, 100.0)
    }
    assert len(orders) == 1
    assert orders != {tuple(range(32))}


def test_ratio_zero_scores_every_channel_one():
    weight, _, gram = problem()
    for solver in SOLVERS:
        assert torch.equal(numerical_score(weight, gram, ratio=0, solver=solver), torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_channel_that_contributes_less_scores_lower(solver):
    weight, gram = torch.ones(3, 4), torch.diag(torch.tensor([4.0, 1.0, 3.0, 2.0]))
    scores = numerical_score(weight, gram, ratio=0.3, solver=solver)
    assert scores.argsort().tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("solver", SOLVERS)
def test_rank_deficient_gram_gives_finite_scores(solver):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(3, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 16, generator=generator, dtype=torch.float64)
    gram = x.T @ x
    assert int(torch.linalg.matrix_rank(gram)) == 3
    scores = numerical_score(weight, gram / gram.trace(), ratio=0.5, solver=solver, steps=200)
    assert bool(torch.isfinite(scores).all())


@pytest.mark.parametrize("solver", SOLVERS)
def test_identical_channels_get_equal_finite_scores(solver):
    scores = numerical_score(torch.ones(2, 5), torch.full((5, 5), 0.2), ratio=0.4, solver=solver, steps=200)
    torch.testing.assert_close(scores, scores[:1].expand(5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("why", ["weight", "gram"])
def test_dead_channels_score_lowest(solver, why):
    weight, _, gram = problem()
    dead = [2, 5]
    if why == "weight":
        weight[:, dead] = 0
    else:
        gram[dead] = gram[:, dead] = 0
    alive = [i for i in range(8) if i not in dead]
    scores = numerical_score(weight, gram, ratio=0.5, solver=solver)
    assert float(scores[dead].max()) < min(0.0, float(scores[alive].min()))
    assert sorted(scores.argsort()[:2].tolist()) == dead
    without = numerical_score(weight[:, alive], gram[alive][:, alive], ratio=0.5, solver=solver)
    torch.testing.assert_close(scores[alive], without, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_module_without_any_signal_scores_zero_everywhere(solver):
    zeros = torch.zeros(4, dtype=torch.float64)
    assert torch.equal(numerical_score(torch.zeros(3, 4), torch.eye(4), ratio=0.5, solver=solver), zeros)
    assert torch.equal(numerical_score(torch.ones(3, 4), torch.zeros(4, 4), ratio=0.5, solver=solver), zeros)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_lower_precision_are_scored_in_float64(dtype):
    weight, _, gram = problem()
    low = weight.to(dtype)
    scores = numerical_score(low, gram, ratio=0.5)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, numerical_score(low.double(), gram, ratio=0.5), rtol=1e-4, atol=1e-5)


def test_inputs_are_left_alone():
    weight, _, gram = problem()
    before = weight.clone(), gram.clone()
    for solver in SOLVERS:
        numerical_score(weight, gram, ratio=0.5, solver=solver)
    assert torch.equal(weight, before[0])
    assert torch.equal(gram, before[1])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ratio": 1.0}, "ratio is 1.0"),
        ({"ratio": -0.1}, "ratio is -0.1"),
        ({"ratio": float("nan")}, "ratio is nan"),
        ({"ratio": "half"}, "ratio is half"),
        ({"penalty": 0.0}, "penalty is 0.0"),
        ({"penalty": float("inf")}, "penalty is inf"),
        ({"solver": "adam"}, "closed_form, newton, boxed"),
        ({"steps": 0}, "steps is 0"),
        ({"damping": -1.0}, "damping is -1.0"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"weight": torch.ones(3)}, r"expected \(out, in\)"),
        ({"gram": torch.eye(3)}, r"gram \(3, 3\)"),
        ({"gram": torch.ones(4)}, r"gram \(4,\)"),
    ],
)
def test_wrong_arguments_are_refused(changes, says):
    arguments = {"weight": torch.ones(2, 4), "gram": torch.eye(4), "ratio": 0.5, **changes}
    with pytest.raises(InputError, match=says):
        numerical_score(**arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["weight", "gram"])
def test_non_finite_inputs_are_refused(value, which):
    arguments = {"weight": torch.ones(2, 4), "gram": torch.eye(4)}
    arguments[which][1, 2] = value
    with pytest.raises(NumericalError, match=f"{which} has non-finite values"):
        numerical_score(**arguments, ratio=0.5)


def test_an_indefinite_gram_is_refused_with_remedies():
    gram = torch.tensor([[1.0, 100.0], [100.0, 1.0]])
    with pytest.raises(NumericalError, match="more calibration samples, a higher damping"):
        numerical_score(torch.ones(1, 2), gram, ratio=0.5)
