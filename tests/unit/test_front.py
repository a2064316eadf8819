"""The Pareto front against brute force, and the rule that picks a point."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from excise.search.front import choose, non_dominated, spread

VALUES = st.one_of(st.integers(0, 4).map(float), st.floats(0, 1), st.just(float("inf")), st.just(float("nan")))


@dataclass(frozen=True)
class Point:
    rate: float
    kl_first: float
    kl_sequence: float


@dataclass(frozen=True)
class Firm(Point):
    reserve: float | None


@given(st.integers(2, 3).flatmap(lambda size: st.lists(st.tuples(*[VALUES] * size), max_size=30)))
def test_the_front_is_what_brute_force_finds(points: list[tuple[float, ...]]) -> None:
    usable = [index for index, point in enumerate(points) if all(value == value for value in point)]

    def beaten(index: int) -> bool:
        return any(
            all(one <= other for one, other in zip(points[rival], points[index], strict=True))
            and (points[rival] != points[index] or rival < index)
            for rival in usable
            if rival != index
        )

    expected = [index for index in usable if not beaten(index)]
    found = non_dominated(points)
    assert sorted(found) == expected
    assert [points[index][0] for index in found] == sorted(points[index][0] for index in found)


def test_the_lowest_rate_wins_then_the_smallest_damage() -> None:
    points = [Point(0.5, 0.0, 0.0), Point(0.01, 0.2, 0.2), Point(0.0, 0.9, 0.9), Point(0.04, 0.1, 0.1)]
    assert choose(points).index == 1
    assert choose(points).satisfied


def test_without_a_low_rate_the_tolerance_is_relative_to_the_lowest() -> None:
    points = [Point(0.30, 0.9, 0.9), Point(0.31, 0.2, 0.2), Point(0.35, 0.1, 0.1)]
    assert choose(points).index == 1


def test_a_point_whose_behavior_is_back_at_a_part_of_its_strength_is_passed_over() -> None:
    points = [Firm(0.0, 0.02, 0.02, 0.3), Firm(0.0, 0.03, 0.03, 0.05), Firm(0.01, 0.05, 0.05, 0.0)]
    choice = choose(points)
    assert choice.index == 1
    assert "1 with a smaller KL passed over" in choice.reason


def test_where_no_point_has_reserve_those_with_the_most_are_near_enough() -> None:
    points = [Firm(0.0, 0.02, 0.02, 0.9), Firm(0.0, 0.03, 0.03, 0.63), Firm(0.0, 0.05, 0.05, 0.6)]
    assert choose(points).index == 1


def test_points_without_a_measured_reserve_are_not_judged_by_it() -> None:
    points = [Firm(0.0, 0.02, 0.02, None), Firm(0.0, 0.03, 0.03, 0.05)]
    assert choose(points).index == 0
    assert "passed over" not in choose(points).reason


@pytest.mark.parametrize(
    ("limits", "index", "satisfied"),
    [
        ({"max_kl": 0.25}, 1, True),
        ({"max_kl": 0.15}, 3, True),
        ({"max_kl": -1.0}, 0, False),
        ({"max_rate": 0.05}, 3, True),
        ({"max_rate": 0.0}, 2, True),
        ({"max_kl": 0.25, "max_rate": 0.0}, 1, False),
    ],
)
def test_limits_are_respected_and_said_to_be_missed(limits: dict[str, float], index: int, satisfied: bool) -> None:
    points = [Point(0.5, 0.0, 0.0), Point(0.01, 0.2, 0.2), Point(0.0, 0.9, 0.9), Point(0.04, 0.1, 0.1)]
    choice = choose(points, **limits)
    assert (choice.index, choice.satisfied) == (index, satisfied)
    assert choice.reason


@given(st.integers(0, 40), st.integers(1, 8))
def test_a_spread_keeps_the_lowest_and_no_more_than_asked(count: int, most: int) -> None:
    kept = spread(range(count), most=most)
    assert len(kept) == min(count, most)
    assert kept == sorted(set(kept))
    assert kept[:1] == list(range(count))[:1]
    assert most < 2 or kept[-1:] == list(range(count))[-1:]


def test_of_damages_that_nobody_would_notice_the_most_reserve_wins() -> None:
    points = [Firm(0.04, 0.004, 0.001, 0.09), Firm(0.04, 0.006, 0.001, 0.04), Firm(0.04, 0.008, 0.001, 0.04)]
    assert choose(points).index == 1
    points[1:] = [Firm(0.04, 0.02, 0.001, 0.05)]
    assert choose(points).index == 0  # a damage that does count
