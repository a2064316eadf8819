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

    def same_kind(self, other: Change) -> bool:
        """Whether the two differ in strength alone, so that their sum is one projection."""
        return (
            isinstance(other, Projection)
            and self.norm == other.norm == "none"
            and self.directions.shape == other.directions.shape
            and bool(torch.equal(self.directions, other.directions))
        )


@dataclass(frozen=True)
class LowRank:
    """W' = W + BA, with `left` = B and `right` = A; a fused expert bank has one A (and may have one B) per expert."""

    left: Float[Tensor, "*expert hidden rank"]
    right: Float[Tensor, "*bank rank width"]

    def scaled(self, factor: float) -> LowRank:
        """The change times `factor`."""
        return replace(self, left=self.left * factor)

    def same_kind(self, other: Change) -> bool:  # noqa: ARG002 - low-rank sums stay two terms
        """Sums of low-rank changes stay two terms."""
        return False


Change = Projection | LowRank
