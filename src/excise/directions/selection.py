"""Which position and layer one direction for the whole model is taken from."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from excise.directions.separability import Separability

LATEST_DEPTH = 0.8
"""Directions from the last fifth of the layers write to tokens rather than carry a behavior (Arditi et al. 2024)."""

AUC_TOLERANCE = 0.01


def candidate_layers(layers: int) -> int:
    """How many layers, from the first, a direction may be taken from."""
    return max(1, int(LATEST_DEPTH * layers))


def select(separability: Separability, vectors: Float[Tensor, "position layer hidden"]) -> tuple[int, int]:
    """The (position index, layer) of the direction to take.

    Never from the last fifth of the layers, nor where there is no direction. Many places separate perfectly, so of
    those whose held-out AUC is within 0.01 of the highest, the one with the largest held-out effect size wins, which
    is where the behavior is most pronounced against the spread of the prompts.
    """
    allowed = vectors.norm(dim=-1) > 0.5
    allowed[:, candidate_layers(vectors.shape[1]) :] = False
    if not bool(allowed.any()):
        return 0, 0
    auc = separability.auc.masked_fill(~allowed, -1.0)
    effect = separability.effect.masked_fill(auc < auc.max() - AUC_TOLERANCE, -torch.inf)
    index = int(effect.masked_fill(~allowed, -torch.inf).argmax())
    return index // vectors.shape[1], index % vectors.shape[1]
