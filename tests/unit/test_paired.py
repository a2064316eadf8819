"""Paired statistics agree with scipy's and statsmodels', and with what they must be by symmetry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, bootstrap
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from excise.errors import InputError
from excise.evaluation.paired import holm, mcnemar, mean_difference, newcombe, rate_difference
from excise.evaluation.power import highest_rate, lowest_rate, power_note, smallest_difference

QUICK = settings(max_examples=25, deadline=None)
TABLES = st.tuples(*(st.integers(0, 40) for _ in range(4))).filter(lambda table: sum(table) > 0)


def verdicts(both: int, one: int, other: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Two models' verdicts on the same prompts, with these counts."""
    pairs = [(True, True)] * both + [(True, False)] * one + [(False, True)] * other + [(False, False)] * neither
    return [first for first, _ in pairs], [second for _, second in pairs]


@QUICK
@given(TABLES)
def test_mcnemar_is_statsmodels_s(table: tuple[int, int, int, int]) -> None:
    both, one, other, neither = table
    found = mcnemar(*verdicts(*table))
    assert (found.only_first, found.only_second) == (one, other)
    expected = reference_mcnemar([[both, one], [other, neither]], exact=True)
    assert found.exact == pytest.approx(float(expected.pvalue) if one + other else 1.0)
    assert found.exact == pytest.approx(binomtest(one, one + other).pvalue if one + other else 1.0)
    assert found.mid_p <= found.exact
    at_least = binom.pmf(min(one, other), one + other, 0.5) if one + other else 0.0
    assert found.mid_p >= found.exact - at_least - 1e-12
    back = mcnemar(*reversed(verdicts(*table)))
    assert (back.exact, back.mid_p) == (found.exact, found.mid_p)


def test_mid_p_of_a_table_from_the_paper() -> None:
    """Fagerland et al. 2013, table 1: airway hyper-responsiveness, 1 and 7 children changed: 0.070, mid-p 0.039."""
    found = mcnemar(*verdicts(1, 1, 7, 12))
    assert found.exact == pytest.approx(0.0703, abs=1e-4)
    assert found.mid_p == pytest.approx(0.0391, abs=1e-4)


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03], [0.9, 0.02, 0.02, 0.5, 0.001]])
def test_holm_is_statsmodels_s(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_of_no_test_is_none() -> None:
    assert holm([]) == []


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(-30, 30), st.integers(-30, 30)), min_size=6, max_size=40), st.integers(0, 5))
def test_the_paired_bootstrap_is_scipy_s(pairs: list[tuple[int, int]], seed: int) -> None:
    first, second = ([pair[side] / 10 for pair in pairs] for side in (0, 1))
    found = mean_difference(first, second, seed=seed)
    each = np.array(second) - np.array(first)
    assert found.value == pytest.approx(each.mean())
    if found.method == "none":
        assert found.low == found.high == found.value
        return
    expected = bootstrap(
        (each,), np.mean, n_resamples=10_000, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert mean_difference(first, second, seed=seed) == found


def test_a_bootstrap_interval_covers_as_often_as_it_says() -> None:
    chance, covered = np.random.default_rng(0), 0
    for trial in range(60):
        first, second = chance.random(60) < 0.6, chance.random(60) < 0.3
        found = rate_difference(first.tolist(), second.tolist(), seed=trial)
        covered += found.low <= -0.3 <= found.high
    assert covered >= 52  # 95 % of 60 are 57; fewer than 52 happen once in a hundred times


@QUICK
@given(TABLES)
def test_bounds_are_bounds(table: tuple[int, int, int, int]) -> None:
    first, second = verdicts(*table)
    low, high = newcombe(first, second)
    value = sum(second) / len(second) - sum(first) / len(first)
    assert -1 <= low <= value + 1e-12
    assert value - 1e-12 <= high <= 1
    back = newcombe(second, first)
    assert back == pytest.approx((-high, -low), abs=1e-9)


@QUICK
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_without_correlation_newcombe_is_that_of_independent_samples(p: int, q: int, r: int, s: int) -> None:
    table = (p * r, p * s, q * r, q * s)  # both · neither = one · other: φ is 0
    first, second = verdicts(*table)
    expected = confint_proportions_2indep(
        sum(second), len(second), sum(first), len(first), method="newcomb", compare="diff"
    )
    assert newcombe(first, second) == pytest.approx(expected, abs=1e-9)


def test_a_change_of_every_prompt_still_has_a_width() -> None:
    found = rate_difference([True] * 50, [False] * 50)
    assert (found.value, found.low, found.method) == (-1.0, -1.0, "Newcombe")
    assert -0.95 < found.high < -0.85
    same = rate_difference([True] * 50, [True] * 50)
    assert same.low < same.value == 0.0 < same.high


def test_values_that_cannot_be_paired_are_refused() -> None:
    for wrong in (([True], []), ([], [True])):
        with pytest.raises(InputError, match="paired"):
            mcnemar(*wrong)
    with pytest.raises(InputError, match="no prompts"):
        mean_difference([], [])


@QUICK
@given(st.integers(1, 300).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_what_is_not_ruled_out_is_clopper_and_pearson_s(counts: tuple[int, int]) -> None:
    count, total = counts
    low, high = proportion_confint(count, total, alpha=0.1, method="beta")  # two one-sided bounds of 5 %
    assert highest_rate(count, total) == pytest.approx(high, abs=1e-9)
    assert lowest_rate(count, total) == pytest.approx(low, abs=1e-9)


@pytest.mark.parametrize("total", [6, 20, 50, 100])
def test_the_smallest_difference_has_the_power_it_says(total: int) -> None:
    found = smallest_difference(total)
    assert found is not None
    assert binom.sf(5, total, found) == pytest.approx(0.8)
    assert mcnemar([True] * 6, [False] * 6).exact < 0.05 < mcnemar([True] * 5, [False] * 5).exact
    assert smallest_difference(5) is None


def test_the_note_says_it_in_words() -> None:
    assert power_note(0, 50).startswith("50 prompts cannot tell a rate of 0 % from 5.8 %; a paired test finds")
    assert "15." in power_note(0, 50)
    assert power_note(50, 50).startswith("50 prompts cannot tell a rate of 100 % from 94.2 %")
    assert power_note(1, 100).startswith("100 prompts cannot tell a rate of 1.0 % from 4.7 %")
    assert "no difference" in power_note(0, 5)
    with pytest.raises(InputError):
        power_note(0, 0)
