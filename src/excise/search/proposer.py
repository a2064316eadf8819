"""Which candidate to try next, as a pure function of what was tried before: a study resumes as if never stopped.

first      warm starts: what is known to work well on most models
then       by turns Optuna's multi-objective TPE (Ozaki et al. 2022) over (rate, log₁₀ KL), and a small step from a
           point of the front
last       small steps from the leading points alone
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

from excise.search.axes import near_lowest, ranks
from excise.search.front import axes_of, damage, missed, non_dominated, remaining
from excise.search.space import Space
from excise.search.trial import REMOVE, Measured, Parameters, Trial, missing

KL_FLOOR, KL_MOST = 1e-3, 1e3
_REFINED_SHARE = 0.2
_TRIES = 20
_NEAR = 0.02
_LEADERS = 3
_USEFUL_RATE = 0.3
_LIGHTER_SHARE = 0.5


@runtime_checkable
class Proposer(Protocol):
    """Proposes candidates."""

    def propose(self, history: Sequence[Trial], pending: Sequence[Parameters] = ()) -> Parameters:
        """The parameters of the next trial; the same history always gives the same ones.

        pending  what was proposed after `history` already, and is not measured yet
        """


class TreeProposer:
    """Warm starts, then TPE and local steps.

    trials   how many the study will have
    sources  parameters of edits that are known to do something to the behavior, best first (see `excise.search.sweep`)
    """

    def __init__(self, space: Space, *, seed: int, trials: int, sources: Sequence[Parameters] | None = None) -> None:
        self.space = space
        self.seed = seed
        self.trials = trials
        self.warm = warm_starts(space, sources or [space.plain()])

    def propose(self, history: Sequence[Trial], pending: Sequence[Parameters] = ()) -> Parameters:
        """The parameters of the trial after `history` and `pending`, as far as possible none that were tried.

        What is pending counts as a failure until it is measured (a constant liar, Ginsbourger et al. 2010), so that the
        proposals of one batch keep away from each other.
        """
        index = len(history) + len(pending)
        if index < min(len(self.warm), max(1, self.trials // 2)):
            return self.warm[index]
        last = index >= self.trials - max(1, round(_REFINED_SHARE * self.trials))
        if last or index % 2:
            return self._step(history, pending, last=last)
        return self._tree(history, pending)

    def _step(self, history: Sequence[Trial], pending: Sequence[Parameters], *, last: bool) -> Parameters:
        index = len(history) + len(pending)
        generator = random.Random(f"{self.seed}/{index}")
        front = front_of(history)
        if not front:
            return self._tree(history, pending)
        if last:
            leading = leaders(history)[:_LEADERS]
            parent = leading[index % len(leading)]
        else:
            parent = generator.choice(_useful(front))
        tried = {_key(parameters) for parameters in (*(trial.parameters for trial in history), *pending)}
        for _ in range(_TRIES):
            move = self.space.lighter if generator.random() < _LIGHTER_SHARE else self.space.neighbour
            values = move(parent.parameters, generator)
            if _key(values) not in tried:
                break
        return values

    def _tree(self, history: Sequence[Trial], pending: Sequence[Parameters]) -> Parameters:
        index = len(history) + len(pending)
        known = [*history, *_failures(pending, history)]
        taken = {_key(parameters) for parameters in pending}
        for attempt in range(_TRIES):
            seed = (self.seed * 1_000_003 + index + attempt * 7_919) % 2**32
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=0, n_ei_candidates=32)
            with quiet():
                study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
                study.add_trials(told(known, self.space.distributions))
                asked = study.ask(dict(self.space.distributions))
            values = self.space.inside(asked.params)
            if _key(values) not in taken:
                break
        return values


def warm_starts(space: Space, sources: Sequence[Parameters]) -> list[Parameters]:
    """Candidates to begin with, most promising first; those that come out equal are left out.

    Variations of the first two sources, the other sources as they are.
    """
    first, second = sources[0], sources[min(1, len(sources) - 1)]
    methods, norms = space.choices("method"), space.choices("norm")
    other = methods[-1]
    starts = [
        first,
        second,
        space.varied(first, method=other),
        space.varied(first, method=other, start=0.5),
        space.varied(first, strength=1.5 * _strength(first)),
        space.varied(second, strength=1.5 * _strength(second)),
        space.varied(first, method=other, start=0.4, strength=1.25 * _strength(first)),
        space.varied(second, method=other, start=0.3),
        space.varied(first, start=0.5),
        *(space.varied(first, **{f"{role}.strength": 0.0}) for role in space.roles if len(space.roles) > 1),
        *sources[2:4],
        *(space.varied(first, method=other, norm=norm, start=0.3) for norm in norms[1:]),
        space.varied(first, method=other, start=0.5, strength=1.5 * _strength(first)),
        space.varied(first, start=0.3, share=0.75, taper=0.2),
        *(space.varied(each, strength=1.5 * _strength(each)) for each in sources[2:4]),
        *sources[4:],
    ]
    inside = [space.inside(each) for each in starts]
    return list({_key(each): each for each in inside}.values())


def _strength(source: Parameters) -> float:
    """The strength of a source, furthest from 0 where its roles differ."""
    return max((float(value) for name, value in source.items() if name.endswith(".strength")), key=abs)


def front_of(history: Sequence[Trial], *, firm: bool = False) -> list[Trial]:
    """The trials on the Pareto front of what `remaining` says and damage, by the first; screened ones never are.

    firm  a front of three: a trial with a smaller estimate by prefill stays, whatever beats it in the other two
    """
    measured = [trial for trial in history if not trial.measured.screened]
    points = [
        (remaining(trial.measured), damage(trial.measured), _estimated(trial.measured) if firm else 0.0)
        for trial in measured
    ]
    return [measured[index] for index in non_dominated(points)]


def leaders(history: Sequence[Trial]) -> list[Trial]:
    """Of each kind of direction, the trial with the smallest KL among those that miss at most 0.02 more than the best.

    By increasing KL. (A score in place of the rate: near the lowest as `near_lowest` says.) Few prompts do not tell
    which positions generalise to others, so the kinds are kept apart.
    """
    measured = [trial for trial in history if not trial.measured.screened]
    if not measured:
        return []
    rates = [remaining(trial.measured) for trial in front_of(measured)]
    limit = rates[0] + _NEAR if measured[0].measured.rate_by is None else near_lowest(rates, max(rates))
    kinds: dict[tuple[float | str, ...], Trial] = {}
    for trial in sorted(measured, key=lambda each: damage(each.measured)):
        if remaining(trial.measured) <= limit:
            kinds.setdefault((trial.parameters.get("position", ""), trial.parameters.get("reach", "")), trial)
    return list(kinds.values())


def _useful(front: Sequence[Trial]) -> Sequence[Trial]:
    """The part of a front that is worth a step: those that miss at most 0.3; of a score the better half."""
    if front[0].measured.rate_by is not None:
        return front[: (len(front) + 1) // 2]
    return [trial for trial in front if missed(trial.measured) <= _USEFUL_RATE] or front


def _estimated(measured: Measured) -> float:
    """What is missing by the estimate from prefill; 0 where there is none."""
    return 0.0 if measured.estimate is None else missing(measured.estimate, measured.strength)


def _failures(pending: Sequence[Parameters], history: Sequence[Trial]) -> list[Trial]:
    """Trials that are under way, as if they had come out as badly as any so far."""
    known = [trial.measured for trial in history]
    strength = known[0].strength if known else REMOVE
    worst = Measured(
        rate=missing(max(map(missed, known), default=1.0), strength),
        kl_first=max((each.kl_first for each in known), default=KL_MOST),
        kl_sequence=max((each.kl_sequence for each in known), default=KL_MOST),
        scores={key: max(each.scores[key] for each in known) for key in (known[0].scores if known else ())},
        rate_by=known[0].rate_by if known else None,
        damage_by=known[0].damage_by if known else None,
        strength=strength,
    )
    return [Trial(len(history) + place, parameters, worst, 0.0) for place, parameters in enumerate(pending)]


def objectives(measured: Measured) -> tuple[float, float]:
    """What the study minimises: what is `remaining`, and log₁₀(sequence KL + 0.001), so that factors count alike.

    Scores that stand for them are as they are.
    """
    if measured.damage_by is not None:
        return remaining(measured), damage(measured)
    return remaining(measured), log10(min(max(measured.kl_sequence, 0.0), KL_MOST) + KL_FLOOR)


def without_scale(values: Sequence[tuple[float, float]], history: Sequence[Trial]) -> list[tuple[float, float]]:
    """What a sampler is told of trials: of a score, whose scale is the scorer's own, its rank among them."""
    axes = axes_of(history[0].measured) if history else None
    if axes is None or not axes.keys:
        return list(values)
    first, second = ([pair[axis] for pair in values] for axis in (0, 1))
    return list(
        zip(
            first if axes.rate_by is None else ranks(first),
            second if axes.damage_by is None else ranks(second),
            strict=True,
        )
    )


def told(history: Sequence[Trial], distributions: Mapping[str, BaseDistribution]) -> list[FrozenTrial]:
    """Trials for a sampler to learn from."""
    values = without_scale([objectives(trial.measured) for trial in history], history)
    return [frozen(trial, distributions, each) for trial, each in zip(history, values, strict=True)]


def frozen(
    trial: Trial, distributions: Mapping[str, BaseDistribution], values: tuple[float, float] | None = None
) -> FrozenTrial:
    """A trial as Optuna keeps it; its values are its `objectives`, where no others are given."""
    measured = trial.measured
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE,
        params=dict(trial.parameters),
        distributions={name: distributions[name] for name in trial.parameters},
        values=list(values or objectives(measured)),
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
