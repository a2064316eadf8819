"""The Pareto front of behavior rate against damage, and which of its points to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Protocol, runtime_checkable

from excise.search.axes import NEAR_SHARE, Axes, in_unit, near_lowest
from excise.search.trial import REMOVE, RESERVE, missing

RATE_TOLERANCE = 0.01
GOAL_RATE = 0.01
NEGLIGIBLE_KL = 0.005
RESERVE_GOAL, RESERVE_TOLERANCE = 0.05, 0.05
_RELATIVE = f"the lowest and {NEAR_SHARE:.0%} of the way to the"


@runtime_checkable
class Scored(Protocol):
    """Anything with a behavior rate and two divergences, which are better when smaller; so is what is `missing`."""

    @property
    def rate(self) -> float:
        """Share of target prompts whose response shows the behavior."""

    @property
    def kl_first(self) -> float:
        """KL(base‖edited) of the first response token on baseline prompts, in nats."""

    @property
    def kl_sequence(self) -> float:
        """The same, as a mean over the tokens of the base model's own response."""


@runtime_checkable
class Rescored(Scored, Protocol):
    """A point that also has scores, of which some stand for its rate or its damage."""

    @property
    def scores(self) -> Mapping[str, float]:
        """By key, small being good."""

    @property
    def rate_by(self) -> str | None:
        """The score that stands for the rate; None: the rate itself."""

    @property
    def damage_by(self) -> str | None:
        """The score that stands for the damage; None: the divergences."""


@runtime_checkable
class Guarded(Scored, Protocol):
    """A point whose reserve may be known."""

    @property
    def reserve(self) -> float | None:
        """The rate at `RESERVE` of the edit's strength; None where it was not measured."""


@runtime_checkable
class Aimed(Scored, Protocol):
    """A point of a search that says which way it goes."""

    @property
    def strength(self) -> int:
        """1: it removes the behavior; -1: it strengthens it."""


def strength_of(point: Scored) -> int:
    """Which way the point's search goes; 1 where it does not say."""
    return point.strength if isinstance(point, Aimed) else REMOVE


def missed(point: Scored) -> float:
    """The share of target prompts that are not as wanted: that show the behavior, or if strengthened, do not."""
    return missing(point.rate, strength_of(point))


def axes_of(point: Scored) -> Axes:
    """What stands for the point's rate and damage."""
    return Axes(point.rate_by, point.damage_by) if isinstance(point, Rescored) else Axes()


def remaining(point: Scored) -> float:
    """What a point leaves to be done: see `missed`, or the score that stands for it."""
    return point.scores[point.rate_by] if isinstance(point, Rescored) and point.rate_by else missed(point)


def damage(point: Scored) -> float:
    """The mean of both divergences, or the score that stands for them.

    The divergence of the first token says nothing of what follows, the other little of it.
    """
    if isinstance(point, Rescored) and point.damage_by:
        return point.scores[point.damage_by]
    return (point.kl_first + point.kl_sequence) / 2


def non_dominated(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the points that no other point beats (at least as small in every value, smaller in one).

    By increasing first value, then the second, and so on; of equal points the first one stays. A point with a NaN
    never is among them. O(n²) comparisons.
    """
    known = sorted((point, index) for index, point in enumerate(points) if not any(value != value for value in point))
    kept: list[tuple[tuple[float, ...], int]] = []
    for point, index in known:  # whatever beats a point comes before it
        if not any(all(one <= other for one, other in zip(best, point, strict=True)) for best, _ in kept):
            kept.append((point, index))
    return [index for _, index in kept]


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
    base: float | None = None,
) -> Choice:
    """Pick one of at least one points.

    Without limits: the smallest KL (see `damage`) among the points whose rate is at most 1 %, or at most 0.01 above the
    lowest rate, where that is more. Removing the behavior comes first, and rates that a few dozen prompts cannot tell
    apart count as equal. So do KLs below 0.005 nats, which no reader would notice: among those the lowest rate wins,
    then the most reserve.
    A guard passes over points without reserve: where the behavior is back at three quarters of the strength, other
    prompts than those of the search's own sources bring it back too.
    Where the behavior is strengthened, what is left is 1 − rate: all of this holds for that in place of the rate.
    Of a score that stands for the rate or the KL the scale is not known: there as much counts as equal to the lowest
    as `excise.search.axes.near_lowest` says. The limits are always those of the rate and the KL themselves.

    max_kl    only points with a first-token KL of at most this; where there is none, the smallest first-token KL
    max_rate  the smallest KL among points with at most this rate; where there is none, the lowest rate
    preserve  a dial between removing (0) and preserving (1), among the points within the limits: the smallest
              (1 − preserve) · rate + preserve · KL, each relative to the largest of those points
    base      what the base model has of a score that stands for the rate, where it is known
    """
    within = [index for index, point in enumerate(points) if max_kl is None or point.kl_first <= max_kl]
    if not within:
        index = min(range(len(points)), key=lambda each: (points[each].kl_first, missed(points[each])))
        return Choice(index, False, f"no point has a first-token KL of at most {max_kl}: the smallest one was taken")
    lowest = min(missed(points[index]) for index in within)
    if max_rate is not None and lowest > max_rate:
        index = min(within, key=lambda each: (missed(points[each]), damage(points[each])))
        return Choice(index, False, f"no point has a rate of at most {max_rate}: the lowest one was taken")
    if preserve is not None:
        return _dialled(
            points, [each for each in within if max_rate is None or missed(points[each]) <= max_rate], preserve
        )
    if axes_of(points[0]).keys:
        return _by_scores(points, within, max_rate, base)
    limit = max(lowest + RATE_TOLERANCE, GOAL_RATE) if max_rate is None else max_rate
    near = [index for index in within if missed(points[index]) <= limit + 1e-9]

    def cost(index: int) -> tuple[float, float, float, float]:
        point = points[index]
        return max(damage(point), NEGLIGIBLE_KL), missed(point), _reserve(point), damage(point)

    bound, best = _rate_of(points[0], limit)
    reason = f"the smallest KL at a {bound}; below {NEGLIGIBLE_KL} nats the {best}"
    firm, needed = _firm(points, near)
    index = min(firm, key=cost)
    passed = sum(cost(each) < cost(index) for each in near)
    if passed:
        reason += (
            f"; {passed} with a smaller KL passed over, which at {RESERVE:.0%} strength have no "
            f"{_rate_of(points[0], needed)[0]}"
        )
    return Choice(index, True, reason)


def _firm(points: Sequence[Scored], near: Sequence[int]) -> tuple[list[int], float]:
    """Of those points the ones with reserve, and the rate that they may show at a part of their strength.

    At most `RESERVE_GOAL`, or `RESERVE_TOLERANCE` above the lowest, where that is more. Points whose reserve was not
    measured are not judged by it.
    """
    known = {
        index: missing(point.reserve, strength_of(point))
        for index in near
        if isinstance(point := points[index], Guarded) and point.reserve is not None
    }
    needed = max(RESERVE_GOAL, min(known.values(), default=0.0) + RESERVE_TOLERANCE)
    return [index for index in near if known.get(index, 0.0) <= needed + 1e-9], needed


def _reserve(point: Scored) -> float:
    """What is `missing` at `RESERVE` of the strength, or where that was not measured at the whole of it."""
    known = point.reserve if isinstance(point, Guarded) else None
    return missing(point.rate if known is None else known, strength_of(point))


def _rate_of(point: Scored, limit: float) -> tuple[str, str]:
    """`rate of at most LIMIT` and `lowest rate`, where the search strengthens the other way round."""
    if strength_of(point) == REMOVE:
        return f"rate of at most {limit:.3g}", "lowest rate"
    return f"rate of at least {1 - limit:.3g}", "highest rate"


def _by_scores(points: Sequence[Scored], within: Sequence[int], max_rate: float | None, base: float | None) -> Choice:
    """The same rule where scores stand for the rate or the KL: what counts as equal is relative to the other points."""
    axes = axes_of(points[0])
    allowed = [index for index in within if max_rate is None or missed(points[index]) <= max_rate]
    left = [remaining(points[index]) for index in allowed]
    if axes.rate_by is not None:
        known = base is not None and base > min(left)
        limit = near_lowest(left, base if known else max(filter(isfinite, left), default=None))
        among = f"'{axes.rate_by}' of at most {limit:.3g} ({_RELATIVE} {'base model' if known else 'highest'})"
    else:
        limit = (max(min(left) + RATE_TOLERANCE, GOAL_RATE) if max_rate is None else max_rate) + 1e-9
        among = _rate_of(points[0], limit)[0]
    near = [index for index, value in zip(allowed, left, strict=True) if value <= limit]
    floor, kind, unit = NEGLIGIBLE_KL, "KL", f"below {NEGLIGIBLE_KL} nats"
    if axes.damage_by is not None:
        floor = near_lowest([damage(points[index]) for index in near])
        kind, unit = f"'{axes.damage_by}'", f"up to {floor:.3g} ({_RELATIVE} median)"

    def cost(index: int) -> tuple[float, float, float]:
        point = points[index]
        return max(damage(point), floor), remaining(point), damage(point)

    lowest = _rate_of(points[0], limit)[1] if axes.rate_by is None else f"lowest '{axes.rate_by}'"
    return Choice(min(near, key=cost), True, f"the smallest {kind} at a {among}; {unit} the {lowest}")


def _dialled(points: Sequence[Scored], within: Sequence[int], preserve: float) -> Choice:
    axes = axes_of(points[0])
    rates, kls = [remaining(points[index]) for index in within], [damage(points[index]) for index in within]
    relative_rates = _relative(rates) if axes.rate_by is None else in_unit(rates)
    relative_kls = _relative(kls) if axes.damage_by is None else in_unit(kls)

    def cost(place: int) -> tuple[float, float, float]:
        weighed = ((1 - preserve, relative_rates[place]), (preserve, relative_kls[place]))
        return sum(weight * value for weight, value in weighed if weight), rates[place], kls[place]

    rate = "rate" if strength_of(points[0]) == REMOVE else "1 − rate"
    what = rate if axes.rate_by is None else f"'{axes.rate_by}'"
    cost_name = "KL" if axes.damage_by is None else f"'{axes.damage_by}'"
    reason = f"the smallest weighted sum of {what} ({1 - preserve:.3g}) and {cost_name} ({preserve:.3g})"
    if axes.keys:
        reason += ", each relative to the lowest and the highest"
    return Choice(within[min(range(len(within)), key=cost)], True, reason)


def _relative(values: Sequence[float]) -> list[float]:
    """To the largest one."""
    most = max(values) or 1.0
    return [value / most for value in values]


def spread(indices: Sequence[int], *, most: int) -> list[int]:
    """At most `most` of a front's indices (by increasing rate): half of them the lowest, the others up to the last."""
    if len(indices) <= most:
        return list(indices)
    low = (most + 1) // 2
    rest, wanted = indices[low:], most - low
    return [*indices[:low], *(rest[(number + 1) * len(rest) // wanted - 1] for number in range(wanted))]
