"""What is done to one writer: a projection or a low-rank change.

Glossary: W the weight with the residual axis first, d hidden size, V orthonormal directions (one per row), λ strength,
B and A the factors of a low-rank change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Norm = Literal["none", "column"]


@dataclass(frozen=True)
class Projection:
    """W' = (I − λ VᵀV) W; with `norm="column"` every column keeps its length exactly.

    directions   orthonormal rows, in the space of the writer's output (a post-norm gain is already folded in)
    strength     1 removes the directions, 0 leaves the weight, negative values strengthen
    """

    directions: Float[Tensor, "rank hidden"]
    strength: float
    norm: Norm = "none"

    def scaled(self, factor: float) -> Projection:
        """The same projection at `factor` times the strength."""
        return replace(self, strength=self.strength * factor)

    def plus(self, other: Change) -> Projection | None:
        """Both as one projection; None unless they differ in strength alone."""
        if not isinstance(other, Projection) or not self.norm == other.norm == "none":
            return None
        same = self.directions.shape == other.directions.shape and torch.equal(self.directions, other.directions)
        return replace(self, strength=self.strength + other.strength) if same else None


@dataclass(frozen=True)
class LowRank:
    """W' = W + BA, with `left` = B and `right` = A; a fused expert bank has one A (and may have one B) per expert."""

    left: Float[Tensor, "*expert hidden rank"]
    right: Float[Tensor, "*bank rank width"]

    def scaled(self, factor: float) -> LowRank:
        """The change times `factor`."""
        return replace(self, left=self.left * factor)

    def plus(self, other: Change) -> LowRank | None:
        """Both as one change, whose rank is the sum of theirs; None where they change weights of different shapes.

        A left factor that all experts of a bank share is repeated for each where the other change has one per expert.
        """
        if not isinstance(other, LowRank) or self._changes != other._changes:
            return None
        left, more = self.left, other.left
        if left.ndim != more.ndim:
            bank = self.right.shape[:-2]
            left, more = left.expand(*bank, *left.shape[-2:]), more.expand(*bank, *more.shape[-2:])
        return LowRank(torch.cat([left, more], dim=-1), torch.cat([self.right, other.right], dim=-2))

    @property
    def _changes(self) -> tuple[int, ...]:
        """The shape of the weight that this is a change of: the bank's axes, hidden size, width."""
        return (*self.right.shape[:-2], self.left.shape[-2], self.right.shape[-1])


Change = Projection | LowRank
