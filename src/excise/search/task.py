"""What a method of the search is given: the model, the prompts, the directions, the settings, and where trials go."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from optuna.distributions import BaseDistribution

from excise.behaviors import Behavior, PromptSet, Splits
from excise.directions import Directions
from excise.edit import Edit, Norm
from excise.model import EditableModel
from excise.progress import Progress, silent
from excise.search.axes import Axes
from excise.search.objective import BehaviorObjective
from excise.search.study import Study
from excise.search.trial import REMOVE, UNLIMITED, Limits, Parameters, Trial

Budget = Literal["quick", "standard", "thorough"]

TRIALS: Mapping[str, int] = {"quick": 24, "standard": 60, "thorough": 200}
_NOTES = "notes"
_SCORERS, _BASE_SCORES = "scorers", "base scores"


@dataclass(frozen=True)
class Task:
    """One search, for whichever method does it. Nothing in it changes but `study`, which methods add trials to.

    directions  found on the `fit` split
    budget      "quick", "standard" or "thorough"; what that means is each method's own
    trials      how many trials exactly; None leaves it to the budget
    norm        of the edits; None leaves it to the method
    study       where trials go
    max_kl, max_rate  goals; only a method that says so (`Method.aims_at_goals`) may let its trials depend on them
    preserve    the dial between removing (0) and preserving (1); None: the front's own rule
    axes        scores that stand for the rate and the damage
    strength    1: the behavior is removed; -1: it is strengthened, which only some methods can (`Method.strengthens`)
    seconds     how long the search may take, in place of the budget; only some methods can promise that
    max_tokens  of a response; None: the behavior's own
    """

    model: EditableModel
    behavior: Behavior
    splits: Splits
    directions: Directions
    study: Study
    seed: int = 0
    budget: str = "standard"
    trials: int | None = None
    norm: Norm | None = None
    max_kl: float | None = None
    max_rate: float | None = None
    preserve: float | None = None
    axes: Axes = field(default_factory=Axes)
    strength: int = REMOVE
    seconds: float | None = None
    max_tokens: int | None = None
    batch_size: int | None = None
    progress: Progress = silent

    @property
    def wanted(self) -> int:
        """The number of trials: the one asked for, or 24, 60 or 200 by the budget."""
        return TRIALS[self.budget] if self.trials is None else self.trials

    @cached_property
    def tune(self) -> BehaviorObjective:
        """What trials are scored with: the `tune` split. The base model is measured when this is first asked for.

        So it is by the scorers that the axes need: raises `InputError` where none returns what is asked for.
        """
        found = self.measure(self.splits.tune)
        if self.axes.keys and self.study.note(_SCORERS) is None:
            sources, scores = found.locate()
            self.study.remember(_BASE_SCORES, scores)
            self.study.remember(_SCORERS, sources)
            found = replace(found, sources=sources)
        return found

    def measure(
        self, prompts: PromptSet, *, screening: bool = True, reserve: bool = False, max_tokens: int | None = None
    ) -> BehaviorObjective:
        """The objective on other prompts; measures the base model, which must have no edit live.

        max_tokens  of a response, where it is not the task's own
        """
        return BehaviorObjective.measure_base(
            self.model,
            self.behavior,
            prompts,
            screening=screening,
            reserve=reserve,
            axes=self.axes,
            sources=self.study.note(_SCORERS) or {},
            strength=self.strength,
            max_tokens=max_tokens or self.max_tokens,
            batch_size=self.batch_size,
            progress=self.progress,
        )

    @property
    def base_scores(self) -> Mapping[str, float]:
        """What registered scorers said of the base model on the tune split, by key; empty before `tune` was asked."""
        return dict(self.study.note(_BASE_SCORES) or {})

    def add_trial(
        self,
        parameters: Parameters,
        edit: Edit,
        distributions: Mapping[str, BaseDistribution],
        *,
        limits: Limits = UNLIMITED,
        keep: bool = False,
        making: float = 0.0,
    ) -> Trial:
        """Measure an edit on the tune split and add it to the study as the next trial.

        distributions  that its parameters lie in
        limits         when to give it up before generation; by default it is measured in full
        keep           whether the edit itself is kept: where its parameters do not say what it is
        making         seconds that it took to make the edit; they count as the trial's
        """
        started = time.monotonic()
        measured = self.tune(edit, limits)
        trial = Trial(len(self.study.trials), parameters, measured, round(making + time.monotonic() - started, 3))
        self.study.append(trial, distributions, edit if keep else None)
        return trial

    def state(self, fact: str) -> None:
        """Keep a sentence that users must read (what was left out, which fall-back was taken) with the study, once."""
        known = notes_of(self.study)
        if fact not in known:
            self.study.remember(_NOTES, [*known, fact])


def notes_of(study: Study) -> tuple[str, ...]:
    """What a method stated about a study."""
    return tuple(study.note(_NOTES) or ())
