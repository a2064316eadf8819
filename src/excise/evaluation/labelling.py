"""Labellers: scorers that say of every response what it is. All of a behavior's look at the same responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import nan
from typing import Any

import torch

from excise.behaviors import Behavior
from excise.behaviors.measures import Label
from excise.errors import BehaviorError, ExciseError, InputError, ScorerError
from excise.evaluation.agreement import Kappa, cohens_kappa
from excise.evaluation.labels import LABELS
from excise.evaluation.rate import Rate
from excise.evaluation.registry import failed
from excise.progress import Progress, silent

MARKERS = "markers"
"""The labeller that every behavior has: its own detectors."""


@dataclass(frozen=True)
class Answers:
    """What a labeller is given: the same for each of them.

    prompts     as the user wrote them
    texts       one answer per prompt, without what the model thinks first; may be empty, and very long
    device      where the model is, for labellers that compute
    batch_size  None: as the labeller sees fit
    """

    behavior: Behavior
    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    device: torch.device | str = "cpu"
    batch_size: int | None = None
    progress: Progress = silent


@dataclass(frozen=True)
class Verdicts:
    """What a labeller says.

    labels   one per answer, in their order; None where it could not tell
    details  what else is worth knowing, as JSON values: tokens, costs, failures
    """

    labels: tuple[Label | None, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> Rate:
        """Over the answers that were labelled: what is unknown is in neither part of the share."""
        return Rate.of([label for label in self.labels if label is not None])

    @property
    def unknown(self) -> int:
        """How many answers have no label."""
        return self.labels.count(None)

    def to_json(self) -> dict[str, Any]:
        """`rate` (NaN where nothing is known), `rate_interval`, `labels`, `unknown`, and the details."""
        rate = self.rate
        known = rate.to_json() if rate.total else {**rate.to_json(), "rate": nan}
        return {**known, "unknown": self.unknown, **self.details}


Labeller = Callable[[Answers], Verdicts | Sequence[Label | None]]
LabellerWith = Callable[[Answers, str], Verdicts | Sequence[Label | None]]
Needs = Callable[[Behavior], object]


@dataclass(frozen=True)
class _Entry:
    """One registered labeller; `argument` is what may follow its colon, empty where nothing may."""

    function: LabellerWith
    argument: str
    needs: Needs | None


_LABELLERS: dict[str, _Entry] = {}


def labeller(name: str, *, needs: Needs | None = None) -> Callable[[Labeller], Labeller]:
    """Register a labeller under `name`: a function from `Answers` to one label each, or None where it cannot tell.

    needs  raises `BehaviorError` for a behavior that does not say what the labeller must know
    """

    def register(function: Labeller) -> Labeller:
        _add(name, _Entry(lambda answers, _: function(answers), "", needs))
        return function

    return register


def labeller_with(name: str, argument: str, *, needs: Needs | None = None) -> Callable[[LabellerWith], LabellerWith]:
    """The same for a labeller that may be given something: `NAME:ARGUMENT`, or `NAME` alone for an empty argument.

    argument  what it is, for the help: `MODEL`
    """

    def register(function: LabellerWith) -> LabellerWith:
        _add(name, _Entry(function, argument, needs))
        return function

    return register


def labellers() -> Mapping[str, str]:
    """Every registered labeller by name, with what may follow its colon (empty: nothing)."""
    return {name: entry.argument for name, entry in _LABELLERS.items()}


def labellers_for(behavior: Behavior, names: Sequence[str] = ()) -> dict[str, Labeller]:
    """The labellers of a behavior: its markers, and those asked for as `NAME` or `NAME:ARGUMENT`.

    Nothing else runs by itself: a classifier may have to be downloaded, and a judge costs money. `labellers_of` says
    for which of them the behavior has what it takes. Raises `InputError` for a name that is unknown, `BehaviorError`
    where the behavior does not say what a labeller needs.
    """
    found: dict[str, Labeller] = {}
    for text in dict.fromkeys([MARKERS, *names]):
        entry, argument = _entry(text)
        if entry.needs is not None:
            entry.needs(behavior)
        found[text] = partial(_call, entry.function, argument)
    return found


def labellers_of(behavior: Behavior) -> list[str]:
    """The names of the registered labellers that this behavior says enough for."""
    found = []
    for name, entry in _LABELLERS.items():
        try:
            if entry.needs is not None:
                entry.needs(behavior)
        except BehaviorError:
            continue
        found.append(name)
    return found


@dataclass(frozen=True)
class Labelling:
    """The verdicts of several labellers on the same answers, by name."""

    verdicts: Mapping[str, Verdicts]

    def kappa(self, first: str, second: str, *, behavior_only: bool = True) -> Kappa:
        """How far two of them agree; by default on whether the behavior is shown, which all of them tell."""
        return cohens_kappa(self.verdicts[first].labels, self.verdicts[second].labels, behavior_only=behavior_only)

    def to_json(self) -> dict[str, Any]:
        """Each one's own values, and its `kappa` with every other."""
        return {
            name: {
                **verdicts.to_json(),
                "kappa": {other: self.kappa(name, other).to_json() for other in self.verdicts if other != name},
            }
            for name, verdicts in self.verdicts.items()
        }


def label_all(answers: Answers, chosen: Mapping[str, Labeller]) -> Labelling:
    """Ask every labeller about the same answers.

    Raises `ScorerError`, which names it, for one that fails or returns something else than one label per answer.
    """
    return Labelling({name: _verdicts(name, function, answers) for name, function in chosen.items()})


def _verdicts(name: str, function: Labeller, answers: Answers) -> Verdicts:
    try:
        said: Any = function(answers)
    except ExciseError:
        raise
    except Exception as error:
        raise failed(f"the labeller '{name}'", error, hint="mend it and call the same command again") from error
    labels = said.labels if isinstance(said, Verdicts) else tuple(said)
    wrong = [label for label in labels if label is not None and label not in LABELS]
    if wrong or len(labels) != len(answers.texts):
        what = f"the label {wrong[0]!r}" if wrong else f"{len(labels)} labels for {len(answers.texts)} answers"
        raise ScorerError(
            f"the labeller '{name}' returned {what}",
            hint=f"return one of {', '.join(LABELS)} for every answer, or None where it cannot tell",
        )
    return said if isinstance(said, Verdicts) else Verdicts(labels)


def _entry(text: str) -> tuple[_Entry, str]:
    name, colon, argument = text.partition(":")
    if name not in _LABELLERS:
        raise InputError(f"there is no labeller '{name}'", hint=f"known: {', '.join(_LABELLERS)}")
    entry = _LABELLERS[name]
    if colon and not entry.argument:
        raise InputError(f"the labeller '{name}' takes nothing after a colon", hint=f"ask for `{name}`")
    return entry, argument


def _call(function: LabellerWith, argument: str, answers: Answers) -> Verdicts | Sequence[Label | None]:
    return function(answers, argument)


def _add(name: str, entry: _Entry) -> None:
    if name in _LABELLERS:
        raise InputError(f"there is a labeller '{name}' already", hint="choose another name")
    _LABELLERS[name] = entry
