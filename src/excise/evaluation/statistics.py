"""Intervals and summaries: a figure without its spread is not a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist

from jaxtyping import Float
from torch import Tensor

from excise.errors import InputError


def wilson(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval for a rate of `count` in `total` (Wilson 1927); (0, 1) where nothing was counted.

    Unlike the normal approximation it stays within [0, 1] and has a width at 0 and at `total`.
    """
    if not 0 <= count <= total or not 0 < confidence < 1:
        raise InputError(f"no interval for {count} of {total} at {confidence}", hint="0 ≤ count ≤ total is needed")
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = count / total
    centre = rate + z * z / (2 * total)
    half = z * sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    low = 0.0 if count == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if count == total else min(1.0, (centre + half) / scale)
    return low, high


@dataclass(frozen=True)
class Summary:
    """A distribution over prompts in four numbers: one prompt in a hundred often supplies most of a mean."""

    mean: float
    median: float
    p95: float
    max: float

    @classmethod
    def of(cls, values: Float[Tensor, " prompt"]) -> Summary:
        """Summarise one value per prompt, in fp64; quantiles interpolate. All zeros for no values."""
        if values.numel() == 0:
            return cls(0.0, 0.0, 0.0, 0.0)
        exact = values.detach().cpu().double()
        return cls(exact.mean().item(), _quantile(exact, 0.5), _quantile(exact, 0.95), exact.max().item())

    def to_json(self) -> Mapping[str, float]:
        """The four numbers by name."""
        return asdict(self)


def _quantile(values: Float[Tensor, " prompt"], level: float) -> float:
    return values.quantile(level).item()
