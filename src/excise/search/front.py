"""The Pareto front of behavior rate against damage, and which of its points to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

RATE_TOLERANCE = 0.01
GOAL_RATE = 0.01
NEGLIGIBLE_KL = 0.005


@runtime_checkable
class Scored(Protocol):
    """Anything with a behavior rate and two divergences, all of them better when smaller."""

    @property
    def rate(self) -> float:
        """Share of target prompts whose response shows the behavior."""

    @property
    def kl_first(self) -> float:
        """KL(base‖edited) of the first response token on baseline prompts, in nats."""

    @property
    def kl_sequence(self) -> float:
        """The same, as a mean over the tokens of the base model's own response."""


def non_dominated(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats (at least as small in both values, smaller in one).

    By increasing first value; of equal points the first one stays. NaN never is on the front. O(n log n).
    """
    order = sorted(
        (index for index, (first, second) in enumerate(points) if first == first and second == second),
        key=lambda index: (*points[index], index),
    )
    front: list[int] = []
    best = float("inf")
    for index in order:
        if points[index][1] < best or (not front and points[index][1] == best):
            front.append(index)
            best = points[index][1]
    return front


@dataclass(frozen=True)
class Choice:
    """Which point was taken, and whether it met what was asked.

    index      of the point
    satisfied  whether the given limits are met
    reason     the rule that picked it, in a sentence
    """

    index: int
    satisfied: bool
    reason: str


def choose(
    points: Sequence[Scored],
    *,
    max_kl: float | None = None,
    max_rate: float | None = None,
    preserve: float | None = None,
) -> Choice:
    """Pick one of at least one points.

    Without limits: the smallest sequence KL among the points whose rate is at most 1 %, or at most 0.01 above the
    lowest rate, where that is more. Removing the behavior comes first, and rates that a few dozen prompts cannot tell
    apart count as equal. So do KLs below 0.005 nats, which no reader would notice: among those the lowest rate wins.

    max_kl    only points with a first-token KL of at most this; where there is none, the smallest first-token KL
    max_rate  the smallest sequence KL among points with at most this rate; where there is none, the lowest rate
    preserve  a dial between removing (0) and preserving (1), among the points within the limits: the smallest
              (1 − preserve) · rate + preserve · sequence KL, each relative to the largest of those points
    """
    within = [index for index, point in enumerate(points) if max_kl is None or point.kl_first <= max_kl]
    if not within:
        index = min(range(len(points)), key=lambda each: (points[each].kl_first, points[each].rate))
        return Choice(index, False, f"no point has a first-token KL of at most {max_kl}: the smallest one was taken")
    lowest = min(points[index].rate for index in within)
    if max_rate is not None and lowest > max_rate:
        index = min(within, key=lambda each: (points[each].rate, points[each].kl_sequence))
        return Choice(index, False, f"no point has a rate of at most {max_rate}: the lowest one was taken")
    if preserve is not None:
        return _dialled(
            points, [each for each in within if max_rate is None or points[each].rate <= max_rate], preserve
        )
    limit = max(lowest + RATE_TOLERANCE, GOAL_RATE) if max_rate is None else max_rate
    near = [index for index in within if points[index].rate <= limit + 1e-9]

    def cost(index: int) -> tuple[float, float, float]:
        point = points[index]
        return max(point.kl_sequence, NEGLIGIBLE_KL), point.rate, point.kl_sequence

    reason = f"the smallest sequence KL at a rate of at most {limit:.3g}; below {NEGLIGIBLE_KL} nats the lowest rate"
    return Choice(min(near, key=cost), True, reason)


def _dialled(points: Sequence[Scored], within: Sequence[int], preserve: float) -> Choice:
    most_rate = max(points[index].rate for index in within) or 1.0
    most_kl = max(points[index].kl_sequence for index in within) or 1.0

    def cost(index: int) -> tuple[float, float, float]:
        rate, kl = points[index].rate, points[index].kl_sequence
        return (1 - preserve) * rate / most_rate + preserve * kl / most_kl, rate, kl

    reason = f"the smallest weighted sum of rate ({1 - preserve:.3g}) and sequence KL ({preserve:.3g})"
    return Choice(min(within, key=cost), True, reason)


def spread(indices: Sequence[int], *, most: int) -> list[int]:
    """At most `most` of a front's indices (by increasing rate): mostly the lowest, the others spread over the rest."""
    if len(indices) <= most:
        return list(indices)
    low = max(1, 2 * most // 3)
    rest, wanted = list(indices[low:]), most - low
    if wanted == 0:
        return list(indices[:low])
    step = len(rest) / wanted
    return [*indices[:low], *(rest[int(step * number)] for number in range(wanted))]
