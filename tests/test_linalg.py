import pytest
import torch

from numprune import NumericalError, linalg
from numprune.linalg import all_finite, damped_cholesky, lower_product, mirror_lower_


@pytest.mark.parametrize("columns", [1, 4, 5, 6, 10, 13])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_blocks_give_the_whole_product(columns, dtype, monkeypatch):
    monkeypatch.setattr(linalg, "BLOCK", 5)
    x = torch.randn(7, columns, generator=torch.Generator().manual_seed(columns)).to(dtype)
    lower = lower_product(x)
    assert lower.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = x.double().T @ x.double()
    torch.testing.assert_close(lower.double().tril(), expected.tril(), rtol=1e-5, atol=1e-5)
    full = mirror_lower_(lower)
    assert torch.equal(full, full.T)
    torch.testing.assert_close(full.double(), expected, rtol=1e-5, atol=1e-5)


def test_mirroring_reads_the_lower_triangle_only(monkeypatch):
    monkeypatch.setattr(linalg, "BLOCK", 3)
    matrix = torch.arange(49.0).reshape(7, 7)
    expected = matrix.tril() + matrix.tril(-1).T
    assert torch.equal(mirror_lower_(matrix), expected)


def test_damping_is_a_share_of_the_mean_diagonal():
    matrix = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    factor, used = damped_cholesky(matrix, 0.5)
    assert used == 0.5
    torch.testing.assert_close(factor @ factor.T, torch.diag(torch.tensor([2.0, 4.0], dtype=torch.float64)))
    assert torch.equal(matrix, torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)))


def test_damping_rises_tenfold_until_it_works():
    # The smallest eigenvalue is -0.05 of the mean diagonal.
    matrix = torch.tensor([[1.0, 1.05], [1.05, 1.0]], dtype=torch.float64)
    with pytest.raises(NumericalError, match=r"size 2 cannot be factorised with damping 0.001; use more calibration"):
        damped_cholesky(matrix, 0.001)
    factor, used = damped_cholesky(matrix, 0.001, raise_damping=True)
    assert used == pytest.approx(0.1)
    torch.testing.assert_close(factor @ factor.T, matrix + 0.1 * torch.eye(2, dtype=torch.float64))


def test_damping_starts_from_zero_and_ends_at_one():
    assert damped_cholesky(torch.ones(3, 3, dtype=torch.float64), 0.0, raise_damping=True)[1] > 0
    with pytest.raises(NumericalError, match="higher damping"):
        damped_cholesky(torch.tensor([[1.0, 9.0], [9.0, 1.0]], dtype=torch.float64), 0.0, raise_damping=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_finite(dtype):
    largest = torch.finfo(dtype).max
    assert all_finite(torch.full((4, 4), largest, dtype=dtype))
    for values in ([float("nan"), 0], [float("inf"), 0], [float("inf"), -float("inf")]):
        assert not all_finite(torch.tensor(values, dtype=dtype))
