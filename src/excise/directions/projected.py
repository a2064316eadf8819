"""Projected difference of means (Lai 2025, "Projected Abliteration")."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from excise.directions.methods import register


@register("projected")
def projected(
    target: Float[Tensor, "position layer hidden"], baseline: Float[Tensor, "position layer hidden"]
) -> Float[Tensor, "position layer hidden"]:
    """δ − (δ·μ̂) μ̂ with μ̂ the unit baseline mean: what all prompts share is left alone.

    A difference that lies along the baseline mean altogether leaves only rounding.
    """
    difference = target - baseline
    unit = baseline / baseline.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    shared: Tensor = (difference * unit).sum(dim=-1, keepdim=True) * unit
    return difference - shared
