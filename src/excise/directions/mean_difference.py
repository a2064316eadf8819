"""Difference of means (Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single Direction")."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from excise.directions.methods import register


@register("mean-difference")
def mean_difference(
    target: Float[Tensor, "position layer hidden"], baseline: Float[Tensor, "position layer hidden"]
) -> Float[Tensor, "position layer hidden"]:
    """δ = μ_target − μ_baseline."""
    return target - baseline
