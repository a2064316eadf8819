"""What is done to one writer: a projection, a low-rank change, or a mask over its inputs.

Glossary: W the weight with the residual axis first, d hidden size, V orthonormal directions (one per row), λ strength,
B and A the factors of a low-rank change, s the scale of every column.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def misfit(self, shape: Sequence[int], *, axis: int) -> str:
        """Why a weight of this shape cannot be changed so; empty where it can."""
        return _other_width(self.directions.shape[-1], shape, axis)


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

    def misfit(self, shape: Sequence[int], *, axis: int) -> str:
        """Why a weight of this shape cannot be changed so; empty where it can."""
        return _other_width(self.left.shape[-2], shape, axis)


@dataclass(frozen=True)
class Mask:
    """W' = W · diag(s): every column of a writer (one input feature, of one expert in a bank) is scaled; biases stay.

    A column of an MLP's output matrix is a neuron, a block of columns of attention's a head, all columns of a slice of
    a bank an expert. 1 leaves a column, 0 removes it exactly, negative values turn it round.

    scale  has the axes of the weight without the residual one, in their order: (width,), or (expert, width) for a bank;
           an axis of length 1 stands for all of it
    """

    scale: Float[Tensor, "*column"]

    def scaled(self, factor: float) -> Mask:
        """The weight change times `factor`: 1 + factor · (s − 1)."""
        return replace(self, scale=1 + factor * (self.scale - 1))

    def plus(self, other: Change) -> Mask | None:
        """Both as one mask, weight changes added up: s + s' − 1."""
        if not isinstance(other, Mask) or self.scale.ndim != other.scale.ndim:
            return None
        axes = zip(self.scale.shape, other.scale.shape, strict=True)
        fits = all(mine == theirs or 1 in (mine, theirs) for mine, theirs in axes)
        return replace(self, scale=self.scale + other.scale - 1) if fits else None

    def misfit(self, shape: Sequence[int], *, axis: int) -> str:
        """Why a weight of this shape cannot be changed so; empty where it can."""
        columns = [size for index, size in enumerate(shape) if index != axis]
        sizes = tuple(self.scale.shape)
        fits = len(sizes) == len(columns) and all(size in (1, most) for size, most in zip(sizes, columns, strict=False))
        return "" if axis < len(shape) and fits else f"the edit masks inputs of shape {sizes}"


Change = Projection | LowRank | Mask


def _other_width(width: int, shape: Sequence[int], axis: int) -> str:
    fits = axis < len(shape) and shape[axis] == width
    return "" if fits else f"the edit is for a residual stream of width {width}"
