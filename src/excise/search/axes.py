"""What a search trades: the behavior rate against the damage, or scores that stand for one of them or both.

A score is any number that evaluation returns (`excise.evaluation.KEYS`) or a registered scorer does. It may be of any
scale, so what is compared with it is relative: an order, or a share of the way between other points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import median

from excise.errors import InputError
from excise.evaluation import check_keys

NEAR_SHARE = 0.02
"""Scores no further above the lowest than this share of the way to a distant one count as equal to it."""


@dataclass(frozen=True)
class Axes:
    """The keys of the scores that stand for the rate and for the damage; None: the built-in measure."""

    rate_by: str | None = None
    damage_by: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that were given."""
        return tuple(key for key in (self.rate_by, self.damage_by) if key is not None)

    def to_json(self) -> dict[str, str]:
        """The keys by name; those that were not given are left out."""
        given = {"rate_by": self.rate_by, "damage_by": self.damage_by}
        return {name: key for name, key in given.items() if key is not None}

    def check(self) -> None:
        """Refuse keys that cannot be, as far as that can be told without a model. Raises `InputError`."""
        check_keys(self.keys)
        if self.rate_by is not None and self.rate_by == self.damage_by:
            raise InputError(f"'{self.rate_by}' stands for both axes", hint="give two keys, or only one of them")


def near_lowest(values: Sequence[float], far: float | None = None) -> float:
    """Scores up to this one count as equal to the lowest.

    far  a score that is far from the lowest, such as the base model's, which says what scale they have; by default
         the median rather than the highest, as broken models may be worse by any factor
    """
    lowest = min(values)
    if far is None or not lowest < far < inf:
        finite = [value for value in values if isfinite(value)]
        far = median(finite) if finite else lowest
    return lowest + NEAR_SHARE * (far - lowest) if isfinite(lowest) else lowest


def in_unit(values: Sequence[float]) -> list[float]:
    """Scores on a scale from 0, the lowest, to 1, the highest that is finite; what is infinite stays so."""
    finite = [value for value in values if isfinite(value)]
    low = min(finite, default=0.0)
    width = (max(finite, default=0.0) - low) or 1.0
    return [(value - low) / width if isfinite(value) else value for value in values]


def ranks(values: Sequence[float]) -> list[float]:
    """The place of each score among the others, from 0 to 1; equal ones share theirs."""
    places = {value: place for place, value in enumerate(sorted(set(values)))}
    return [places[value] / max(len(places) - 1, 1) for value in values]
