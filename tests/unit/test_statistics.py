"""Intervals and summaries agree with the textbook's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from excise.errors import InputError
from excise.evaluation import Rate, Summary, wilson


@given(st.integers(1, 2000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_is_scipy_s(counts: tuple[int, int]) -> None:
    count, total = counts
    expected = binomtest(count, total).proportion_ci(method="wilson")
    low, high = wilson(count, total)
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= low <= count / total <= high <= 1


def test_wilson_at_the_edges() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 100)[0] == 0.0
    assert wilson(100, 100)[1] == 1.0
    assert wilson(5, 50, confidence=0.5)[1] < wilson(5, 50)[1]
    for wrong in ((3, 2), (-1, 2)):
        with pytest.raises(InputError):
            wilson(*wrong)


def test_summary_keeps_the_tail_apart_from_the_mean() -> None:
    values = torch.zeros(100)
    values[7] = 10.0
    summary = Summary.of(values)
    assert summary.mean == pytest.approx(0.1)
    assert summary.median == 0.0
    assert summary.max == 10.0
    assert Summary.of(torch.tensor([1.0, 2.0, 3.0, 4.0])).median == pytest.approx(2.5)
    assert Summary.of(torch.zeros(0)).mean == 0.0
    assert set(summary.to_json()) == {"mean", "median", "p95", "max"}


def test_rate_counts_labels() -> None:
    rate = Rate.of(["behavior", "comply", "comply", "degenerate"])
    assert (rate.count, rate.total, rate.value) == (1, 4, 0.25)
    assert rate.labels == {"behavior": 1, "deflect": 0, "degenerate": 1, "comply": 2}
    assert rate.interval == wilson(1, 4)
    assert Rate.of([]).value == 0.0
    assert set(rate.to_json()) == {"rate", "rate_interval", "labels", "unfinished_thinking"}


def test_what_never_stops_thinking_has_no_label() -> None:
    rate = Rate.of(["behavior", "degenerate", "degenerate", "comply"], [False, True, False, False])
    assert rate.labels == {"behavior": 1, "deflect": 0, "degenerate": 1, "comply": 1}
    assert (rate.unfinished_thinking, rate.total, rate.value) == (1, 4, 0.25)
