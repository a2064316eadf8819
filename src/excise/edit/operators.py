"""The only code that computes a weight change.

Live hooks, baking and LoRA export call these functions; a test shows that their logits agree. A weight may have any
number of axes: `axis` is the residual one, and a *column* is a vector along it (one per input feature, per expert, or
per token of an embedding). All arithmetic is in fp32 whatever the dtype of the weight.

Glossary: W weight, V directions, λ strength, a = VW the part along the directions, c the column scale, s the
factors of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from excise.edit.change import Change, LowRank, Mask, Projection


def delta(weight: Float[Tensor, ...], changes: Sequence[Change], *, axis: int) -> Float[Tensor, ...]:
    """The change of `weight`, in fp32 and in its own layout: the sum of what each of `changes` does to the base weight.

    A projection at strength 1 leaves no component of `weight + delta` along its directions on `axis` (to fp32
    rounding), in both norm modes; `column` also keeps the length of every column (a column that lies wholly in the
    directions has no other component to carry its length, and becomes zero). A mask of 0 leaves nothing of a column.
    """
    columns = weight.float().movedim(axis, -1)
    total: Tensor | None = None
    for change in changes:
        term = _delta(columns, change)
        total = term if total is None else total.add_(term)
    return (torch.zeros_like(columns) if total is None else total).movedim(-1, axis)


def bias_delta(bias: Float[Tensor, ...], changes: Sequence[Change]) -> Float[Tensor, ...]:
    """The change of a bias whose last axis is the residual one: projected like the output it is added to.

    Low-rank changes and masks act on what is computed from inputs: they leave a bias as it is.
    """
    vectors = bias.float()
    total = torch.zeros_like(vectors)
    for change in changes:
        if isinstance(change, Projection):
            total += output_delta(vectors, change)
    return total


def output_delta(output: Float[Tensor, "... hidden"], change: Projection) -> Float[Tensor, "... hidden"]:
    """What a projection without norm mode adds to a writer's output: −λ Vᵀ V y."""
    directions = change.directions.to(device=output.device, dtype=output.dtype)
    if output.ndim < 2 or output.stride(-1) == 1:
        return (output @ directions.T * -change.strength) @ directions
    # The columns of a weight whose residual axis is not its last: stay in its layout, strided results are slow.
    return (directions.T @ (directions @ output.mT * -change.strength)).mT


def column_scale(weight: Float[Tensor, ...], change: Projection, *, axis: int) -> Float[Tensor, ...]:
    """c with W' = (I − λVᵀV) W diag(c), the columns of W' as long as those of W; `weight.shape` without `axis`.

    Equal to ‖w‖ / sqrt(‖w‖² − (2λ − λ²)‖Vw‖²), computed from the projected column itself, which does not cancel.
    Columns that vanish under the projection get c = 1.
    """
    columns = weight.float().movedim(axis, -1)
    return _scale(columns, columns + output_delta(columns, change))


def apply(weight: Float[Tensor, ...], changes: Sequence[Change], *, axis: int) -> Float[Tensor, ...]:
    """The edited weight in the dtype of `weight`, rounded once."""
    exact = weight.float()
    return delta(exact, changes, axis=axis).add_(exact).to(weight.dtype)


def apply_bias(bias: Float[Tensor, ...], changes: Sequence[Change]) -> Float[Tensor, ...]:
    """The edited bias in the dtype of `bias`, rounded once."""
    return (bias.float() + bias_delta(bias, changes)).to(bias.dtype)


def _delta(columns: Float[Tensor, "*column hidden"], change: Change) -> Float[Tensor, "*column hidden"]:
    if isinstance(change, Projection):
        return _projection_delta(columns, change)
    if isinstance(change, Mask):
        return columns * (change.scale.to(columns.device, columns.dtype) - 1).unsqueeze(-1)
    return _low_rank_delta(columns, change)


def _projection_delta(columns: Float[Tensor, "*column hidden"], change: Projection) -> Float[Tensor, "*column hidden"]:
    removed = output_delta(columns, change)
    if change.norm == "none":
        return removed
    projected = removed.add_(columns)
    return projected.mul_(_scale(columns, projected).unsqueeze(-1)).sub_(columns)


def _scale(
    columns: Float[Tensor, "*column hidden"], projected: Float[Tensor, "*column hidden"]
) -> Float[Tensor, "*column"]:
    before = torch.linalg.vector_norm(columns, dim=-1)
    after = torch.linalg.vector_norm(projected, dim=-1)
    vanishes = after <= before * (8 * torch.finfo(columns.dtype).eps)
    return torch.where(vanishes, torch.ones_like(before), before / after.masked_fill(vanishes, 1))


def _low_rank_delta(columns: Float[Tensor, "*column hidden"], change: LowRank) -> Float[Tensor, "*column hidden"]:
    left, right = (factor.to(columns.device, columns.dtype) for factor in (change.left, change.right))
    return (left @ right).transpose(-1, -2)
