"""How well one direction tells target from baseline prompts, at every position and layer.

Everything is held out: a direction is fitted on one half of the prompts and judged on the other, both ways round.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from excise.directions.methods import Method

_MOST_FOR_SILHOUETTE = 64


@dataclass(frozen=True)
class Separability:
    """One number per position and layer, in fp32.

    auc         area under the ROC curve of the projection on the direction, held out; 1 separates perfectly
    effect      Cohen's d of that projection, held out: distance of the two means in standard deviations
    silhouette  of the two classes by Euclidean distance, between −1 and 1 (on at most 64 prompts per class)
    norm_ratio  length of the difference of means over that of the baseline mean
    """

    auc: Float[Tensor, "position layer"]
    effect: Float[Tensor, "position layer"]
    silhouette: Float[Tensor, "position layer"]
    norm_ratio: Float[Tensor, "position layer"]

    def at(self, position: int, layer: int) -> dict[str, float]:
        """The numbers of one place, as JSON values."""
        return {field.name: float(getattr(self, field.name)[position, layer]) for field in fields(self)}

    def to_json(self, positions: tuple[str, ...]) -> list[dict[str, Any]]:
        """One entry per position and layer."""
        return [
            {"position": name, "layer": layer, **self.at(index, layer)}
            for index, name in enumerate(positions)
            for layer in range(self.auc.shape[1])
        ]


def measure_separability(
    target: Float[Tensor, "target position layer hidden"],
    baseline: Float[Tensor, "baseline position layer hidden"],
    method: Method,
) -> Separability:
    """Separability of two sets of residuals by the directions that `method` finds. Each needs two prompts at least."""
    auc, effect = _held_out(target, baseline, method)
    difference, centre = target.mean(dim=0) - baseline.mean(dim=0), baseline.mean(dim=0)
    return Separability(
        auc=auc,
        effect=effect,
        silhouette=_silhouette(target[:_MOST_FOR_SILHOUETTE], baseline[:_MOST_FOR_SILHOUETTE]),
        norm_ratio=difference.norm(dim=-1) / centre.norm(dim=-1).clamp(min=1e-12),
    )


def _held_out(target: Tensor, baseline: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    """AUC and Cohen's d of each half under the direction of the other, averaged. Halves interleave."""
    scores = []
    for half in (0, 1):
        fitted = method(target[half::2].mean(dim=0), baseline[half::2].mean(dim=0))
        unit = fitted / fitted.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        scores.append([(side[1 - half :: 2] * unit).sum(dim=-1) for side in (target, baseline)])
    auc = torch.stack([_auc(shown, absent) for shown, absent in scores]).mean(dim=0)
    effect = torch.stack([_cohen(shown, absent) for shown, absent in scores]).mean(dim=0)
    return auc, effect


def _auc(shown: Tensor, absent: Tensor) -> Tensor:
    """P(shown > absent) + ½ P(equal) over all pairs; the first axis counts prompts."""
    above = (shown[:, None] > absent[None]).float().mean(dim=(0, 1))
    return above + 0.5 * (shown[:, None] == absent[None]).float().mean(dim=(0, 1))


def _cohen(shown: Tensor, absent: Tensor) -> Tensor:
    spread = 0.5 * (shown.var(dim=0, correction=0) + absent.var(dim=0, correction=0))
    return (shown.mean(dim=0) - absent.mean(dim=0)) / spread.sqrt().clamp(min=1e-12)


def _silhouette(target: Tensor, baseline: Tensor) -> Tensor:
    """Mean of (b − a) / max(a, b): a the mean distance to one's own class, b to the other one."""
    result = torch.empty(target.shape[1:3])
    sizes = len(target), len(baseline)
    for position in range(target.shape[1]):
        points = torch.cat([target[:, position], baseline[:, position]]).transpose(0, 1)
        points = points - points.mean(dim=1, keepdim=True)  # what all share would cost the distances their digits
        distances = torch.cdist(points, points)
        to_target = distances[:, :, : sizes[0]].sum(dim=-1)
        to_baseline = distances[:, :, sizes[0] :].sum(dim=-1)
        first, second = slice(0, sizes[0]), slice(sizes[0], None)
        own = torch.cat(
            [to_target[:, first] / max(sizes[0] - 1, 1), to_baseline[:, second] / max(sizes[1] - 1, 1)], dim=1
        )
        other = torch.cat([to_baseline[:, first] / sizes[1], to_target[:, second] / sizes[0]], dim=1)
        result[position] = ((other - own) / torch.maximum(own, other).clamp(min=1e-12)).mean(dim=1)
    return result
