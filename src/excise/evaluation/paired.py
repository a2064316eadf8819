"""Two models on the same prompts: what differs, between which bounds, and whether chance alone would do that.

Prompts differ far more from each other than an edit changes them, so that everything here is paired by prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
from scipy import stats

from excise.errors import InputError
from excise.evaluation.statistics import wilson

RESAMPLES = 10_000
Method = Literal["BCa bootstrap", "Newcombe", "none"]


@dataclass(frozen=True)
class Difference:
    """Second minus first, in the mean over prompts, with its interval.

    method  "BCa bootstrap" over prompts (Efron 1987); "Newcombe" (1998, method 10) for a difference of rates that is
            the same for every prompt, where a bootstrap has no width; "none" for means that are
    """

    value: float
    low: float
    high: float
    method: Method

    def to_json(self) -> dict[str, Any]:
        """`difference`, `interval`, `method`."""
        return {"difference": self.value, "interval": [self.low, self.high], "method": self.method}


@dataclass(frozen=True)
class McNemar:
    """Prompts on which only one of two models shows the behavior, and how likely such a split is by chance.

    exact  two-sided p-value of the binomial test on the prompts that differ (McNemar 1947): never too small
    mid_p  the same with half the probability of what was observed (Fagerland, Lydersen and Laake 2013): less strict,
           and still hardly ever too small
    """

    only_first: int
    only_second: int
    exact: float
    mid_p: float

    def to_json(self) -> dict[str, Any]:
        """`only_first`, `only_second`, `p_exact`, `p_mid`."""
        return {
            "only_first": self.only_first,
            "only_second": self.only_second,
            "p_exact": self.exact,
            "p_mid": self.mid_p,
        }


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Compare two models' verdicts on the same prompts. No prompt on which they differ gives p-values of 1.

    Raises `InputError` for sequences of different lengths.
    """
    _check(first, second)
    only_first = sum(one and not other for one, other in zip(first, second, strict=True))
    only_second = sum(other and not one for one, other in zip(first, second, strict=True))
    differing, fewer = only_first + only_second, min(only_first, only_second)
    if not differing:
        return McNemar(0, 0, 1.0, 1.0)
    exact = float(stats.binomtest(fewer, differing, 0.5).pvalue)
    mid_p = float(2 * stats.binom.cdf(fewer, differing, 0.5) - stats.binom.pmf(fewer, differing, 0.5))
    return McNemar(only_first, only_second, exact, min(mid_p, 1.0))


def rate_difference(
    first: Sequence[bool], second: Sequence[bool], *, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """The second rate minus the first on the same prompts, with an interval. The same seed gives the same bounds.

    Raises `InputError` for no prompts, or for sequences of different lengths.
    """
    one, other = ([float(verdict) for verdict in verdicts] for verdicts in (first, second))
    found = mean_difference(one, other, confidence=confidence, seed=seed)
    if found.method != "none":
        return found
    low, high = newcombe(first, second, confidence=confidence)
    return Difference(found.value, low, high, "Newcombe")


def mean_difference(
    first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """The second mean minus the first over the same prompts, with a bootstrap interval; no width where all agree.

    Raises `InputError` for no prompts, or for sequences of different lengths.
    """
    _check(first, second)
    if not len(first):
        raise InputError("no prompts to compare", hint="give at least one prompt")
    each = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    value = float(each.mean())
    if np.ptp(each) == 0:
        return Difference(value, value, value, "none")
    low, high = bootstrap_mean(each.tolist(), confidence=confidence, seed=seed)
    return Difference(value, low, high, "BCa bootstrap")


def bootstrap_mean(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The BCa bootstrap interval of a mean (scipy's), resampling prompts; no width where all values agree."""
    sample = np.asarray(values, dtype=np.float64)
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    found = stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=confidence,
        n_resamples=RESAMPLES,
        vectorized=True,
        method="BCa",
        batch=max(1, 4_000_000 // len(sample)),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def newcombe(first: Sequence[bool], second: Sequence[bool], *, confidence: float = 0.95) -> tuple[float, float]:
    """Bounds of a difference of paired rates from the Wilson bounds of both (Newcombe 1998, method 10).

    Unlike a bootstrap it has a width where every prompt changes in the same way.
    """
    _check(first, second)
    pairs = list(zip(map(bool, first), map(bool, second), strict=True))
    total = len(pairs)
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    one, other = pairs.count((True, False)), pairs.count((False, True))
    rates = (both + one) / total, (both + other) / total
    bounds = [wilson(count, total, confidence) for count in (both + one, both + other)]
    margins = (both + one) * (other + neither) * (both + other) * (one + neither)
    phi = _correlation(both * neither - one * other, margins, total)
    below = [rate - low for rate, (low, _) in zip(rates, bounds, strict=True)]
    above = [high - rate for rate, (_, high) in zip(rates, bounds, strict=True)]
    value = rates[1] - rates[0]
    low = value - sqrt(max(0.0, below[1] ** 2 - 2 * phi * below[1] * above[0] + above[0] ** 2))
    high = value + sqrt(max(0.0, above[1] ** 2 - 2 * phi * above[1] * below[0] + below[0] ** 2))
    return max(-1.0, low), min(1.0, high)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several tests, adjusted so that the chance of any false alarm stays at the level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _correlation(product: int, margins: int, total: int) -> float:
    """Newcombe's φ, with his correction of continuity where it is positive; 0 where a margin is empty."""
    if margins == 0:
        return 0.0
    corrected = max(product - total / 2, 0.0) if product > 0 else float(product)
    return corrected / sqrt(margins)


def _check(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second):
        raise InputError(
            f"{len(first)} and {len(second)} values cannot be paired", hint="give both models' values in one order"
        )
