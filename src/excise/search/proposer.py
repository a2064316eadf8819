"""Which candidate to try next, as a pure function of what was tried before: a study resumes as if never stopped.

first      warm starts: what is known to work well on most models
then       by turns Optuna's multi-objective TPE (Ozaki et al. 2022) over (rate, log₁₀ KL), and a small step from a
           point of the front
last       small steps from the best point alone
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import log10
from typing import Protocol, runtime_checkable

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from excise.search.front import choose, non_dominated
from excise.search.space import Space
from excise.search.trial import Measured, Parameters, Trial

KL_FLOOR = 1e-3
_REFINED_SHARE = 0.2
_TRIES = 20


@runtime_checkable
class Proposer(Protocol):
    """Proposes candidates."""

    def propose(self, history: Sequence[Trial]) -> Parameters:
        """The parameters of the next trial; the same history always gives the same ones."""


class TreeProposer:
    """Warm starts, then TPE and local steps.

    trials   how many the study will have
    sources  parameters of edits that are known to remove the behavior, best first (see `excise.search.sweep`)
    """

    def __init__(self, space: Space, *, seed: int, trials: int, sources: Sequence[Parameters] | None = None) -> None:
        self.space = space
        self.seed = seed
        self.trials = trials
        self.warm = warm_starts(space, sources or [space.plain()])

    def propose(self, history: Sequence[Trial]) -> Parameters:
        """The parameters of trial number `len(history)`."""
        index = len(history)
        if index < min(len(self.warm), max(1, self.trials // 2)):
            return self.warm[index]
        last = index >= self.trials - max(1, round(_REFINED_SHARE * self.trials))
        if last or index % 2:
            return self._step(history, index, best=last)
        return self._tree(history, index)

    def _step(self, history: Sequence[Trial], index: int, *, best: bool) -> Parameters:
        generator = random.Random(f"{self.seed}/{index}")
        front = front_of(history)
        if not front:
            return self._tree(history, index)
        parent = front[choose([trial.measured for trial in front]).index]
        if not best:
            useful = [trial for trial in front if trial.measured.rate <= 0.3] or front
            parent = generator.choice(useful)
        tried = {_key(trial.parameters) for trial in history}
        for _ in range(_TRIES):
            values = self.space.neighbour(parent.parameters, generator)
            if _key(values) not in tried:
                break
        return values

    def _tree(self, history: Sequence[Trial], index: int) -> Parameters:
        sampler = optuna.samplers.TPESampler(
            seed=(self.seed * 1_000_003 + index) % 2**32, multivariate=True, n_startup_trials=0, n_ei_candidates=32
        )
        with quiet():
            study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
            study.add_trials([frozen(trial, self.space.distributions) for trial in history])
            asked = study.ask(dict(self.space.distributions))
        return self.space.inside(asked.params)


def warm_starts(space: Space, sources: Sequence[Parameters]) -> list[Parameters]:
    """Candidates to begin with, most promising first; those that come out equal are left out.

    Variations of the first two sources, the other sources as they are.
    """
    first, second = sources[0], sources[min(1, len(sources) - 1)]
    starts = [
        first,
        second,
        space.varied(first, start=0.3),
        space.varied(first, strength=1.5),
        space.varied(second, strength=1.5),
        *sources[2:4],
        space.varied(first, start=0.5),
        space.varied(second, start=0.3),
        *(space.varied(first, method=method) for method in space.choices("method")[1:]),
        *(space.varied(first, norm=norm) for norm in space.choices("norm")[1:]),
        space.varied(first, start=0.3, share=0.75, taper=0.2),
        *(space.varied(each, strength=1.5) for each in sources[2:4]),
        *sources[4:],
    ]
    inside = [space.inside(each) for each in starts]
    return list({_key(each): each for each in inside}.values())


def front_of(history: Sequence[Trial]) -> list[Trial]:
    """The trials on the Pareto front of rate and sequence KL, by increasing rate; screened ones never are."""
    measured = [trial for trial in history if not trial.measured.screened]
    points = [(trial.measured.rate, trial.measured.kl_sequence) for trial in measured]
    return [measured[index] for index in non_dominated(points)]


def objectives(measured: Measured) -> tuple[float, float]:
    """What the study minimises: the rate, and log₁₀(sequence KL + 0.001), so that factors count alike."""
    return measured.rate, log10(max(measured.kl_sequence, 0.0) + KL_FLOOR)


def frozen(trial: Trial, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """A trial as Optuna keeps it."""
    measured = trial.measured
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        params=dict(trial.parameters),
        distributions=dict(distributions),
        values=list(objectives(measured)),
        user_attrs={"index": trial.index, "seconds": trial.seconds, "measured": vars(measured)},
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna without its own log lines and notes about experimental features, which are not this library's to make."""
    import warnings

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _key(parameters: Parameters) -> tuple[tuple[str, float | str], ...]:
    return tuple(sorted(parameters.items()))
