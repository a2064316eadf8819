"""Cohen's kappa against scikit-learn, and its interval against plain resampling."""

from __future__ import annotations

import random
from math import isnan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from excise.errors import InputError
from excise.evaluation import LABELS, cohens_kappa

PAIRS = st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=2, max_size=40)


@given(PAIRS)
@settings(max_examples=50, deadline=None)
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[Any, Any]]) -> None:
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    for behavior_only in (False, True):
        found = cohens_kappa(first, second, behavior_only=behavior_only)
        mapped = [[label == "behavior" for label in row] if behavior_only else row for row in (first, second)]
        if len({*mapped[0], *mapped[1]}) == 1:
            assert isnan(found.value)
            assert found.agree == 1.0
        else:
            assert found.value == pytest.approx(cohen_kappa_score(*mapped), abs=1e-9)
            assert found.interval[0] <= found.interval[1]
        assert found.count == len(pairs)
        assert found.agree == pytest.approx(np.mean([one == other for one, other in zip(*mapped, strict=True)]))


def test_the_interval_is_that_of_resampling_responses() -> None:
    draw = random.Random(0)
    first: list[Any] = [draw.choice(LABELS) for _ in range(60)]
    second: list[Any] = [one if draw.random() < 0.7 else draw.choice(LABELS) for one in first]
    found = cohens_kappa(first, second)
    kappas = []
    for _ in range(1000):
        rows = draw.choices(range(60), k=60)
        kappas.append(cohen_kappa_score([first[row] for row in rows], [second[row] for row in rows]))
    assert found.interval == pytest.approx(tuple(np.percentile(kappas, [2.5, 97.5])), abs=0.03)
    assert cohens_kappa(first, second) == found


def test_what_is_unknown_does_not_count() -> None:
    found = cohens_kappa(["behavior", None, "comply", "comply"], ["behavior", "comply", None, "comply"])
    assert (found.value, found.count) == (1.0, 2)
    nothing = cohens_kappa([None], ["comply"])
    assert isnan(nothing.value)
    assert isnan(nothing.agree)
    assert nothing.count == 0
    with pytest.raises(InputError, match="2 labels against 1"):
        cohens_kappa([None, None], [None])
