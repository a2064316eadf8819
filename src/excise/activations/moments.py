"""Count, mean and variance of a stream, in fp64 and in one pass.

Glossary: n count, μ mean, S sum of squared deviations from the mean.
Merging follows Chan, Golub and LeVeque (1979), "Updating Formulae and a Pairwise Algorithm for Computing Sample
Variances": n = n₁ + n₂, δ = μ₂ − μ₁, μ = μ₁ + δ n₂/n, S = S₁ + S₂ + δ² n₁n₂/n. Nothing large is ever subtracted from
something large, so the variance stays right where massive activations would ruin a sum of squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """What a stream of tensors of one shape amounted to, element by element, in fp64 on the CPU.

    count       how many were seen
    mean        their mean
    deviations  sum of squared deviations from the mean
    """

    count: int
    mean: Float[Tensor, ...]
    deviations: Float[Tensor, ...]

    @property
    def variance(self) -> Float[Tensor, ...]:
        """Variance, as a population's (divided by `count`)."""
        return self.deviations / max(self.count, 1)

    @property
    def second_moment(self) -> Float[Tensor, ...]:
        """Mean of the squares: the diagonal of E[xxᵀ]."""
        return self.variance + self.mean.square()

    def merge(self, other: Moments) -> Moments:
        """The moments of both streams together, as if they had been one."""
        count = self.count + other.count
        if count == 0:
            return self
        step = other.mean - self.mean
        share = other.count / count
        between = step.square() * (self.count * share)
        return Moments(count, self.mean + step * share, self.deviations + other.deviations + between)


class MomentAccumulator:
    """Takes batches, gives `Moments`; holds two tensors of the stream's shape, however long the stream is."""

    def __init__(self) -> None:
        self._moments: Moments | None = None

    def update(self, batch: Float[Tensor, "row ..."]) -> None:
        """Add every row of a batch, of any floating dtype, from any device."""
        if len(batch) == 0:
            return
        rows = batch.detach().cpu().double()
        mean = rows.mean(dim=0)
        self.merge(Moments(len(rows), mean, (rows - mean).square().sum(dim=0)))

    def merge(self, other: Moments) -> None:
        """Add a stream that was accumulated elsewhere."""
        self._moments = other if self._moments is None else self._moments.merge(other)

    def result(self) -> Moments:
        """The moments so far; of an empty stream, those of no scalar at all."""
        if self._moments is None:
            zero = torch.zeros((), dtype=torch.float64)
            return Moments(0, zero, zero)
        return self._moments
