"""How far two scorers agree beyond chance: Cohen's kappa, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from excise.behaviors.measures import Label
from excise.errors import InputError
from excise.evaluation.labels import LABELS

_RESAMPLES = 2000


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa (1960) of two series of labels, over the responses that both of them label.

    value     1 is perfect agreement, 0 what chance would give; NaN where it is undefined: nothing to compare, or both
              give one and the same label to everything
    interval  95 %, by bootstrap over responses (percentiles; fixed seed); NaN where `value` is
    agree     the share of responses with the same label; NaN for none
    count     of responses that both label
    """

    value: float
    interval: tuple[float, float]
    agree: float
    count: int

    def to_json(self) -> dict[str, Any]:
        """`kappa`, `interval`, `agree` and `count`."""
        return {"kappa": self.value, "interval": list(self.interval), "agree": self.agree, "count": self.count}


def cohens_kappa(
    first: Sequence[Label | None], second: Sequence[Label | None], *, behavior_only: bool = False, seed: int = 0
) -> Kappa:
    """The agreement of two labellings of the same responses; a response that either left unknown does not count.

    behavior_only  compare only whether the label is `behavior`: for scorers that know no other difference

    Raises `InputError` for labellings of different lengths.
    """
    if len(first) != len(second):
        raise InputError(
            f"{len(first)} labels against {len(second)}", hint="compare labels of the same responses, in one order"
        )
    pairs = [(one, other) for one, other in zip(first, second, strict=True) if one is not None and other is not None]
    size = 2 if behavior_only else len(LABELS)
    table = np.zeros((size, size), dtype=np.int64)
    for one, other in pairs:
        table[_index(one, behavior_only), _index(other, behavior_only)] += 1
    if not pairs:
        return Kappa(nan, (nan, nan), nan, 0)
    value = float(_kappas(table[None])[0])
    agree = float(np.trace(table)) / len(pairs)
    return Kappa(value, (nan, nan) if isnan(value) else _interval(table, seed), agree, len(pairs))


def _index(label: Label, behavior_only: bool) -> int:
    return int(label != "behavior") if behavior_only else LABELS.index(label)


def _kappas(tables: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of confusion tables (table, first, second); NaN where chance alone would agree on everything."""
    total = tables.sum(axis=(1, 2))
    observed = np.trace(tables, axis1=1, axis2=2) / total
    expected = (tables.sum(axis=2) * tables.sum(axis=1)).sum(axis=1) / total**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected < 1.0, (observed - expected) / (1.0 - expected), nan)


def _interval(table: NDArray[np.int64], seed: int) -> tuple[float, float]:
    """Resampling responses with replacement is drawing tables from the multinomial of this one."""
    total = int(table.sum())
    draws = np.random.default_rng(seed).multinomial(total, table.ravel() / total, size=_RESAMPLES)
    kappas = _kappas(draws.reshape(-1, *table.shape).astype(np.int64))
    low, high = np.nanpercentile(kappas, [2.5, 97.5])
    return float(low), float(high)
