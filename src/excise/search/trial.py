"""What a trial is: the parameters of one candidate edit, and what was measured with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from excise.errors import InputError

Parameters = Mapping[str, float | str]

RESERVE = 0.75
"""The share of an edit's strength at which it is asked whether the behavior is gone by a margin."""

REMOVE, STRENGTHEN = 1, -1
"""What a search does to the behavior: the sign of its strengths."""


def check_strength(strength: int) -> None:
    """Refuse a strength that no search has. Raises `InputError`."""
    if strength not in (REMOVE, STRENGTHEN):
        raise InputError(
            f"a search with strength {strength:g}",
            hint="1 removes the behavior, -1 strengthens it; how much of it is what `preserve` and `max_kl` are for "
            "(--preserve, --max-kl)",
        )


def missing(rate: float, strength: int) -> float:
    """The share of target prompts that are not yet as wanted, at a behavior rate: what a search makes small."""
    return rate if strength > 0 else 1.0 - rate


@dataclass(frozen=True)
class Measured:
    """What one edit does to one set of prompts.

    rate         share of target prompts that show the behavior; of a screened trial, an estimate
    kl_first     KL(base‖edited) of the first response token on baseline prompts, mean, in nats
    kl_sequence  the same over the tokens of the base model's own response
    prompts      number of target prompts
    estimate     the rate that prefill alone predicted; None where it was not asked
    screened     whether it was given up before any generation; such a trial never enters the front
    reason       why it was screened, else empty
    scores       by key, those that the search was asked to trade, small being good; infinite where a screened trial
                 was not scored
    rate_by      the key of the score that stands for the rate in this search; None: the rate itself
    damage_by    the key of the score that stands for the damage; None: `excise.search.front.damage`
    reserve      the rate when the edit is at `RESERVE` of its strength; None where it was not measured
    strength     what the search is for: 1 removes the behavior, so that small rates are good; -1 strengthens it
    """

    rate: float
    kl_first: float
    kl_sequence: float
    prompts: int = 0
    estimate: float | None = None
    screened: bool = False
    reason: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    rate_by: str | None = None
    damage_by: str | None = None
    reserve: float | None = None
    strength: int = REMOVE


@dataclass(frozen=True)
class Limits:
    """When a trial is given up before generation.

    kl        a sequence KL above this is too much, or dominated whatever the rate
    onset     an estimate that leaves at least this share of what the base model is `missing` is hopeless
    measured  (`missing`, sequence KL) of trials that were measured: where one has a smaller KL and misses much less
              than the estimate says, a trial is dominated
    """

    kl: float
    onset: float
    measured: tuple[tuple[float, float], ...] = ()


UNLIMITED = Limits(kl=float("inf"), onset=float("inf"))


@dataclass(frozen=True)
class Trial:
    """One finished trial of a study.

    index       its place in the study, from 0
    parameters  of the candidate (see `excise.search.space`)
    measured    on the tune split
    seconds     it took
    """

    index: int
    parameters: Parameters
    measured: Measured
    seconds: float
