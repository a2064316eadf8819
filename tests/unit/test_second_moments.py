"""Second moments: exact, sketched within the bound they state, and what is solved and whitened by them."""

import pytest
import torch
from torch import Tensor

from excise.activations.second_moments import Ridge, SecondMoment, SecondMomentAccumulator


def stream(count: int, width: int, *, seed: int = 0) -> Tensor:
    """Vectors with a decaying spectrum and one massive component."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, width, generator=generator) * torch.linspace(2.0, 0.02, width)
    values[:, 3] += 10.0
    return values


def accumulated(vectors: Tensor, *, pieces: int = 7, **settings: int) -> SecondMoment:
    accumulator = SecondMomentAccumulator(vectors.shape[-1], **settings)
    for part in vectors.chunk(pieces):
        accumulator.update(part)
    return accumulator.result()


def dense(moment: SecondMoment) -> Tensor:
    if moment.matrix is not None:
        return moment.matrix.double()
    assert moment.sketch is not None
    return moment.sketch.double().T @ moment.sketch.double()


def test_the_exact_one_is_the_mean_of_outer_products() -> None:
    vectors = stream(300, 24)
    moment = accumulated(vectors)
    torch.testing.assert_close(dense(moment), vectors.double().T @ vectors.double() / 300, rtol=1e-5, atol=1e-5)
    assert moment.count == 300
    assert moment.error == 0.0
    assert moment.trace == pytest.approx(float(vectors.square().sum()) / 300, rel=1e-5)


@pytest.mark.parametrize("pieces", [1, 5, 40])
def test_a_sketch_errs_by_no_more_than_it_says(pieces: int) -> None:
    vectors = stream(400, 60)
    moment = accumulated(vectors, pieces=pieces, exact_width=0, rank=16)
    assert moment.sketch is not None
    assert len(moment.sketch) <= 16
    gap = torch.linalg.eigvalsh(vectors.double().T @ vectors.double() / 400 - dense(moment))
    assert gap.min() > -1e-4
    assert gap.max() <= moment.error * 1.001 + 1e-5
    tail = vectors.double().svd().S[8:].square().sum() / 400
    assert moment.error <= float(tail) / (16 - 8) + 1e-6


def test_a_sketch_of_few_vectors_is_exact() -> None:
    vectors = stream(10, 60)
    moment = accumulated(vectors, exact_width=0, rank=16)
    assert moment.error == 0.0
    torch.testing.assert_close(dense(moment), vectors.double().T @ vectors.double() / 10, rtol=1e-4, atol=1e-4)


def test_shrinkage_is_large_for_few_vectors_and_vanishes_for_many() -> None:
    few, many = (accumulated(torch.randn(count, 32, generator=torch.Generator().manual_seed(1))) for count in (4, 4000))
    assert few.shrinkage() > 0.8
    spread = accumulated(stream(4000, 32))
    assert spread.shrinkage() < 0.02
    assert 0.0 <= many.shrinkage() <= 1.0


def test_shrinkage_is_that_of_scikit_learn() -> None:
    """Which leaves out the 2/m terms of the paper."""
    covariance = pytest.importorskip("sklearn.covariance")
    vectors = stream(50, 20)
    expected = covariance.OAS(assume_centered=True).fit(vectors.double().numpy()).shrinkage_
    assert accumulated(vectors).shrinkage() == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("exact_width", [64, 0])
def test_whitening_measures_what_moves_the_stream(exact_width: int) -> None:
    vectors = stream(500, 40)
    moment = accumulated(vectors, exact_width=exact_width, rank=64)
    ridge = Ridge(moment, ridge=0.01)
    rows = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    system = dense(moment) + ridge.rho * torch.eye(40, dtype=torch.float64)
    lengths = (rows.double() @ system * rows.double()).sum(dim=-1)
    torch.testing.assert_close(ridge.whitened(rows).square().sum(dim=-1).double(), lengths, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ridge.unwhitened(ridge.whitened(rows)), rows, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("exact_width", [64, 0])
def test_what_is_solved_solves_the_dense_system(exact_width: int) -> None:
    moment, keys = (accumulated(stream(300, 40, seed=seed), exact_width=exact_width, rank=64) for seed in (0, 1))
    ridge = Ridge(moment, ridge=0.01)
    goal = torch.randn(2, 40, generator=torch.Generator().manual_seed(3))
    system = dense(moment) + ridge.rho * torch.eye(40, dtype=torch.float64) + 0.7 * dense(keys)
    expected = torch.linalg.solve(system, goal.double().T).T
    torch.testing.assert_close(ridge.solve(keys, 0.7, goal).double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("exact_width", [64, 0])
def test_gradients_flow_through_unwhitening(exact_width: int) -> None:
    ridge = Ridge(accumulated(stream(300, 12), exact_width=exact_width, rank=8), ridge=0.1)
    rows = torch.randn(2, 12, requires_grad=True)
    weights = torch.randn(2, 12)
    (ridge.unwhitened(rows) * weights).sum().backward()
    step = 1e-2 * torch.randn(2, 12)
    expected = ((ridge.unwhitened(rows + step) - ridge.unwhitened(rows)) * weights).sum()
    assert rows.grad is not None
    torch.testing.assert_close((rows.grad * step).sum(), expected, rtol=1e-2, atol=1e-4)
