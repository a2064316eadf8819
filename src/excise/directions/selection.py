"""Which position and layer one direction for the whole model is taken from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from excise.directions.separability import Separability

LATEST_DEPTH = 0.8
"""Directions from the last fifth of the layers write to tokens rather than carry a behavior (Arditi et al. 2024)."""

AUC_TOLERANCE = 0.01
RESPONSE_ADVANTAGE = 0.05


def candidate_layers(layers: int) -> int:
    """How many layers, from the first, a direction may be taken from."""
    return max(1, int(LATEST_DEPTH * layers))


def select(
    separability: Separability, vectors: Float[Tensor, "position layer hidden"], positions: Sequence[str]
) -> tuple[int, int]:
    """The (position index, layer) of the direction to take.

    Never from the last fifth of the layers, nor where there is no direction. Positions of the response see the behavior
    in its own words, which separates well and says little about what causes it: they are taken only where no position
    of the prompt comes within 0.05 of their AUC. Many places separate perfectly, so of
    those whose held-out AUC is within 0.01 of the highest, the one with the largest held-out effect size wins, which
    is where the behavior is most pronounced against the spread of the prompts.
    """
    allowed = vectors.norm(dim=-1) > 0.5
    allowed[:, candidate_layers(vectors.shape[1]) :] = False
    if not bool(allowed.any()):
        return 0, 0
    auc = separability.auc.masked_fill(~allowed, -1.0)
    in_prompt = torch.tensor([position.startswith("-") for position in positions])
    if bool(in_prompt.any()) and auc[in_prompt].max() >= auc.max() - RESPONSE_ADVANTAGE:
        allowed[~in_prompt] = False
        auc = auc.masked_fill(~allowed, -1.0)
    effect = separability.effect.masked_fill(auc < auc.max() - AUC_TOLERANCE, -torch.inf)
    index = int(effect.masked_fill(~allowed, -torch.inf).argmax())
    return index // vectors.shape[1], index % vectors.shape[1]
