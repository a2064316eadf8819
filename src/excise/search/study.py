"""The study: finished trials on disk, and the loop that adds to them.

`study.db` is an Optuna study in SQLite, which optuna-dashboard opens. A trial is written in one go when it is finished,
so that whatever ends the process, kill -9 included, costs the trial under way and nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import optuna
from optuna.distributions import BaseDistribution

from excise.edit import Edit
from excise.errors import EditError
from excise.progress import Progress, silent
from excise.search.front import axes_of, missed
from excise.search.proposer import Proposer, frozen, quiet
from excise.search.trial import REMOVE, UNLIMITED, Limits, Measured, Parameters, Trial

KL_CEILING = 1.5
KL_NEGLIGIBLE = 0.02
ONSET_LIMIT = 0.8
METRICS = ("rate", "log10 kl_sequence")
_FILE = "study.db"
_BATCH = "trials per batch"


@runtime_checkable
class Objective(Protocol):
    """Measures candidates."""

    def __call__(self, edit: Edit, limits: Limits) -> Measured:
        """What the edit does; it may be given up before generation where it exceeds `limits`."""


@runtime_checkable
class BatchObjective(Objective, Protocol):
    """Measures several candidates in less time than one after the other."""

    @property
    def at_once(self) -> int:
        """How many candidates it is best given at a time."""

    def many(self, edits: Sequence[Edit], limits: Limits) -> list[Measured]:
        """What each edit does, as if measured on its own."""


class Study:
    """The trials of one search, in the order they were finished.

    directory  holds `study.db`; None keeps everything in memory
    key        of all that the trials depend on: another key in the same directory is another study
    metrics    what the two values of a stored trial are (`excise.search.proposer.objectives`)

    Edits that cannot be made again from a trial's parameters are kept in `edits/KEY/NNNN.safetensors` beside it.
    """

    def __init__(self, directory: Path | None, *, key: str, metrics: tuple[str, str] = METRICS) -> None:
        self._metrics = list(metrics)
        self._name = f"excise-{key}"
        self._directory = directory
        self._study: optuna.Study | None = None
        self._notes: dict[str, Any] = {}
        self._edits: dict[int, Edit] = {}
        self._edit_files = None if directory is None else directory / "edits" / key
        self.trials: list[Trial] = []
        if directory is not None and (directory / _FILE).is_file():
            self._load()

    def append(self, trial: Trial, distributions: Mapping[str, BaseDistribution], edit: Edit | None = None) -> None:
        """Add a finished trial, whose parameters lie in `distributions`; it is on disk when this returns.

        edit  kept with the trial, where its parameters do not say what it is (see `edit`)
        """
        stored = self._open()
        if edit is not None and self._edit_files is not None:
            edit.save(self._edit_file(trial.index))  # before the trial: a trial on disk has its edit
        elif edit is not None:
            self._edits[trial.index] = edit
        if stored is not None:
            with quiet():
                stored.add_trial(frozen(trial, distributions))
        self.trials.append(trial)

    def edit(self, index: int) -> Edit:
        """The edit that was handed in with a trial. Raises `EditError` where there is none."""
        if index in self._edits:
            return self._edits[index]
        if self._edit_files is None:
            raise EditError(f"no edit was kept with trial {index}", hint="make it from the trial's parameters")
        return Edit.load(self._edit_file(index))

    def path(self, name: str) -> Path | None:
        """Where a file that all studies of this directory share belongs; None for a study in memory."""
        return None if self._directory is None else self._directory / name

    def own_path(self, name: str) -> Path | None:
        """Where a file of this study alone belongs; None for a study in memory."""
        return None if self._edit_files is None else self._edit_files / name

    def note(self, name: str) -> Any:
        """A JSON value remembered beside the trials; None where there is none."""
        return self._notes.get(name)

    def remember(self, name: str, value: Any) -> None:
        """Remember a JSON value beside the trials."""
        stored = self._open()
        if stored is not None:
            stored.set_user_attr(name, value)
        self._notes[name] = json.loads(json.dumps(value))

    def _edit_file(self, index: int) -> Path:
        assert self._edit_files is not None
        return self._edit_files / f"{index:04d}.safetensors"

    def _open(self) -> optuna.Study | None:
        if self._study is None and self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            with quiet():
                self._study = optuna.create_study(
                    storage=f"sqlite:///{(self._directory / _FILE).resolve()}",
                    study_name=self._name,
                    directions=["minimize", "minimize"],
                    load_if_exists=True,
                )
                self._study.set_metric_names(self._metrics)
        return self._study

    def _load(self) -> None:
        stored = self._open()
        assert stored is not None
        self._notes = dict(stored.user_attrs)
        for kept in stored.get_trials(deepcopy=False):
            attributes = kept.user_attrs
            measured = Measured(**attributes["measured"])
            self.trials.append(Trial(attributes["index"], dict(kept.params), measured, attributes["seconds"]))


def run_study(
    study: Study,
    proposer: Proposer,
    objective: Objective,
    *,
    edit: Callable[[Parameters], Edit],
    distributions: Mapping[str, BaseDistribution],
    trials: int,
    progress: Progress = silent,
) -> None:
    """Add trials until there are `trials`.

    They are proposed and measured in batches, of a size that the study keeps from its beginning, wherever it is gone on
    with. What a batch holds depends on the batches before it alone, so one that was interrupted is measured again as a
    whole, and only what is missing is added.
    """
    at_once = _at_once(study, objective)
    progress("search", len(study.trials), trials, "trials")
    while len(study.trials) < trials:
        started = time.monotonic()
        begin = len(study.trials) // at_once * at_once
        history = study.trials[:begin]
        batch = _propose(proposer, history, min(at_once, trials - begin))
        measured = _measure(objective, [edit(parameters) for parameters in batch], limits_after(history))
        seconds = round((time.monotonic() - started) / len(batch), 3)
        for index in range(len(study.trials), begin + len(batch)):
            place = index - begin
            study.append(Trial(index, batch[place], measured[place], seconds), distributions)
            progress("search", index + 1, trials, "trials")


def _at_once(study: Study, objective: Objective) -> int:
    """How many trials a batch has. What is proposed depends on it, so a study that was begun keeps its own."""
    known = study.note(_BATCH)
    if known is None:
        begun = bool(study.trials)
        known = objective.at_once if isinstance(objective, BatchObjective) and not begun else 1
        if known > 1:
            study.remember(_BATCH, known)
    return int(known)


def _propose(proposer: Proposer, history: Sequence[Trial], count: int) -> list[Parameters]:
    batch: list[Parameters] = []
    while len(batch) < count:
        batch.append(proposer.propose(history, batch))
    return batch


def _measure(objective: Objective, edits: Sequence[Edit], limits: Limits) -> list[Measured]:
    if isinstance(objective, BatchObjective):
        return objective.many(edits, limits)
    return [objective(edit, limits) for edit in edits]


def limits_after(history: Sequence[Trial]) -> Limits:
    """When to give up the next trial before generation, from what is known.

    The first trial is always measured in full. A KL above 1.5 nats is damage at any rate; above that of a trial that
    left nothing to be done, the trial is dominated whatever its rate. KLs below 0.02 nats count as equal: there the
    rate on unseen prompts matters more. The estimate from prefill is trusted (with a wide margin, where it is compared
    with measured rates) until a trial that it said to be unchanged turns out to have lost the behavior.

    Where a score stands for the rate no trial is given up by its rate; where one stands for the damage, none by its KL.
    Nor is one by its rate where the behavior is strengthened: prefill sees where it might begin, not that it does.
    """
    if not history:
        return UNLIMITED
    measured = [trial.measured for trial in history if not trial.measured.screened]
    clean = [each.kl_sequence for each in measured if missed(each) == 0.0]
    misled = history[0].measured.strength != REMOVE or any(
        each.estimate is not None and each.estimate >= 0.75 * ONSET_LIMIT and each.rate < 0.5 * each.estimate
        for each in measured
    )
    axes = axes_of(history[0].measured)
    if axes.keys:
        by_rate = axes.rate_by is None and not misled
        return Limits(
            kl=KL_CEILING if axes.damage_by is None else float("inf"), onset=ONSET_LIMIT if by_rate else float("inf")
        )
    kl = min(KL_CEILING, max(KL_NEGLIGIBLE, min(clean, default=KL_CEILING)))
    if misled:
        return Limits(kl=kl, onset=float("inf"))
    return Limits(
        kl=kl, onset=ONSET_LIMIT, measured=tuple((each.rate, max(each.kl_sequence, KL_NEGLIGIBLE)) for each in measured)
    )
