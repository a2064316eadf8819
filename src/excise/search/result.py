"""What a search gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from excise.edit import Edit
from excise.search.axes import Axes
from excise.search.trial import REMOVE, Measured, Parameters, Trial


@dataclass(frozen=True)
class FrontPoint:
    """One edit of the front, measured on two splits by real generation.

    rate, kl_first, kl_sequence  over the prompts of both splits together (KL: the mean of the two); the rate is that of
                the behavior, whichever way the search went
    edit        with its provenance and scores
    parameters  it came from
    tune        what the search saw
    select      what it did on prompts the search never saw
    trial       index of the trial
    scores      that the search traded, by key: the mean of both splits
    """

    rate: float
    kl_first: float
    kl_sequence: float
    edit: Edit
    parameters: Parameters
    tune: Measured
    select: Measured
    trial: int
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def reserve(self) -> float | None:
        """The rate at three quarters of the edit's strength, on the select split; None where it was not measured."""
        return self.select.reserve

    @property
    def strength(self) -> int:
        """What its search was for: 1 removes the behavior, -1 strengthens it."""
        return self.tune.strength

    @property
    def rate_by(self) -> str | None:
        """The key of the score that stands for the rate; None: the rate itself."""
        return self.tune.rate_by

    @property
    def damage_by(self) -> str | None:
        """The key of the score that stands for the damage; None: the divergences."""
        return self.tune.damage_by

    def to_json(self) -> dict[str, Any]:
        """What was measured, as JSON values."""
        measured = {"rate": self.rate, "kl_first": self.kl_first, "kl_sequence": self.kl_sequence}
        if self.reserve is not None:
            measured["reserve"] = self.reserve
        return {**measured, **scores_in_json(self.scores)}


def scores_in_json(scores: Mapping[str, float]) -> dict[str, Any]:
    """`{"scores": …}` for a row of JSON values, or nothing where there are none; null where one is infinite."""
    finite = {key: value if isfinite(value) else None for key, value in scores.items()}
    return {"scores": finite} if scores else {}


@dataclass(frozen=True)
class SearchResult:
    """The Pareto front of a search, and the edit to take.

    front      non-dominated points, by increasing rate (or what stands for it); decreasing where it is strengthened
    best       the edit of the point that was taken
    reason     the rule that took it, in a sentence; says so where `max_kl` or `max_rate` could not be met
    satisfied  whether they were met
    history    every trial
    seconds    the trials took, those of earlier calls included
    method     that searched
    notes      what the method stated: what it left out, or which fall-back it took
    axes       which scores stood for the rate and the damage
    strength   1: the behavior was removed; -1: it was strengthened
    base_scores  what registered scorers said of the base model on the tune split, by key
    """

    front: tuple[FrontPoint, ...]
    best: Edit
    reason: str
    satisfied: bool
    history: tuple[Trial, ...]
    seconds: float
    method: str
    notes: tuple[str, ...] = ()
    axes: Axes = field(default_factory=Axes)
    strength: int = REMOVE
    base_scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def trials(self) -> int:
        """Number of trials."""
        return len(self.history)

    @property
    def screened(self) -> int:
        """How many of them were given up before any generation."""
        return sum(trial.measured.screened for trial in self.history)

    @property
    def points(self) -> list[dict[str, Any]]:
        """Every trial on the tune split, as JSON values for a plot."""
        on_front = {point.trial for point in self.front}
        return [
            {
                "rate": trial.measured.rate,
                "kl_first": trial.measured.kl_first,
                "kl_sequence": trial.measured.kl_sequence,
                "screened": trial.measured.screened,
                "on_front": trial.index in on_front,
                **scores_in_json(trial.measured.scores),
            }
            for trial in self.history
        ]
