"""Reduced-rank ridge regression, in closed form: the best change of a matrix of a given rank.

Glossary: X inputs (one per row), Y wanted changes of the outputs, Δ the change of the matrix, K = XXᵀ, ρ the ridge.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from excise.edit import LowRank

_ITERATIONS = 60
_SPARE = 8


def reduced_rank_ridge(
    inputs: Float[Tensor, "row width"], wanted: Float[Tensor, "row hidden"], *, ridge: float, rank: int
) -> LowRank:
    """The Δ of at most `rank` that minimises ‖XΔᵀ − Y‖² + ρ‖Δ‖² (Mukherjee and Zhu 2011), in fp32 on the CPU.

    ridge  above 0, in the units of X squared
    rank   at most that of Y; more changes nothing

    Without the limit of rank, Δ = Yᵀ(K + ρI)⁻¹X; with it, Δ is projected on the leading left singular vectors of what
    it does to the rows and to the ridge. Everything is solved in the space of the rows, computed in fp64.
    """
    device = inputs.device if inputs.device.type in ("cpu", "cuda") else torch.device("cpu")
    rows, goal = inputs.to(device).double(), wanted.to(device).double()
    gram = rows @ rows.T
    factor = torch.linalg.cholesky(gram + ridge * torch.eye(len(rows), device=device, dtype=torch.float64))
    solved = torch.cholesky_solve(goal, factor)  # (K + ρI)⁻¹ Y
    left = _leading(gram @ solved, goal, rank)
    right = (solved @ left).T @ rows
    return LowRank(left.float().cpu().contiguous(), right.float().cpu().contiguous())


def _leading(
    fitted: Float[Tensor, "row hidden"], goal: Float[Tensor, "row hidden"], rank: int
) -> Float[Tensor, "hidden rank"]:
    """Leading eigenvectors of FᵀY, which is symmetric and has no negative eigenvalue, by subspace iteration."""
    hidden = goal.shape[-1]
    start = torch.randn(hidden, min(rank + _SPARE, hidden), generator=torch.Generator().manual_seed(0)).to(goal)
    basis = torch.linalg.qr(start).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(fitted.T @ (goal @ basis)).Q
    small = (fitted @ basis).T @ (goal @ basis)
    vectors = torch.linalg.eigh((small + small.T) / 2).eigenvectors.flip(-1)
    found: Tensor = basis @ vectors[:, :rank]
    return found
