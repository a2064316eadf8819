"""The numbers that are left once a polish has given its path: how far along it, and how strongly.

The path goes from the closed form over the edit at the end of each phase; between two of them both are mixed. Two
numbers are few enough for a black box: Optuna's multi-objective TPE over (rate, log₁₀ KL), told of every trial so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution

from excise.edit import Edit
from excise.search.proposer import quiet, told
from excise.search.trial import Trial

WEAKEST, STRONGEST = 0.25, 1.5
"""An edit polished with little weight on preserving, then weakened, does better on other sources of prompts than one
polished with more; how weak it may be, the reserve tells that `front.choose` guards."""

_BEGIN_WITH = (0.8, 0.6, 1.25, 0.4)
"""Proposed first: strengths of the end of the polish's second phase, from when on only preserving counts more."""


def ranges(length: int) -> dict[str, FloatDistribution]:
    """The ranges of both numbers, on a path of `length` edits."""
    return {"along": FloatDistribution(0.0, float(length - 1)), "strength": FloatDistribution(WEAKEST, STRONGEST)}


def at(path: Sequence[Edit], along: float, strength: float) -> Edit:
    """The edit at a place of the path, times a strength."""
    below = min(int(along), len(path) - 1)
    share = along - below
    if share == 0.0:
        return strength * path[below]
    return strength * (1 - share) * path[below] + strength * share * path[below + 1]


def propose(history: Sequence[Trial], *, tried: int, length: int, seed: int) -> dict[str, float]:
    """Where to look next. A pure function of its arguments: a search goes on as if it had never been stopped.

    history  trials whose parameters have both numbers
    tried    how many of them were proposed here
    """
    if tried < len(_BEGIN_WITH):
        return {"along": min(2.0, length - 1.0), "strength": _BEGIN_WITH[tried]}
    distributions: Mapping[str, BaseDistribution] = ranges(length)
    sampler = optuna.samplers.TPESampler(
        seed=(seed * 1_000_003 + len(history)) % 2**32, multivariate=True, n_startup_trials=0, n_ei_candidates=32
    )
    with quiet():
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        known = [replace(each, parameters={name: each.parameters[name] for name in distributions}) for each in history]
        study.add_trials(told(known, distributions))
        asked = study.ask(dict(distributions))
    return {name: round(float(value), 4) for name, value in asked.params.items()}
