"""What a search gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from excise.edit import Edit
from excise.search.trial import Measured, Parameters, Trial


@dataclass(frozen=True)
class FrontPoint:
    """One edit of the front, measured on two splits by real generation.

    rate, kl_first, kl_sequence  over the prompts of both splits together (KL: the mean of the two)
    edit        with its provenance and scores
    parameters  it came from
    tune        what the search saw
    select      what it did on prompts the search never saw
    trial       index of the trial
    """

    rate: float
    kl_first: float
    kl_sequence: float
    edit: Edit
    parameters: Parameters
    tune: Measured
    select: Measured
    trial: int


@dataclass(frozen=True)
class SearchResult:
    """The Pareto front of a search, and the edit to take.

    front      non-dominated points, by increasing rate
    best       the edit of the point that was taken
    reason     the rule that took it, in a sentence; says so where `max_kl` or `max_rate` could not be met
    satisfied  whether they were met
    history    every trial
    seconds    the trials took, those of earlier calls included
    method     that searched
    notes      what the method stated: what it left out, or which fall-back it took
    """

    front: tuple[FrontPoint, ...]
    best: Edit
    reason: str
    satisfied: bool
    history: tuple[Trial, ...]
    seconds: float
    method: str
    notes: tuple[str, ...] = ()

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
            }
            for trial in self.history
        ]
