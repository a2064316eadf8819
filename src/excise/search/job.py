"""The search, top to bottom: a method adds trials, the best are confirmed on unseen prompts, one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from excise import runs
from excise.behaviors import Behavior, Splits
from excise.directions import Directions
from excise.edit import Edit, Norm
from excise.errors import InputError
from excise.evaluation.lengths import confirm_tokens
from excise.find import find_directions
from excise.model import EditableModel
from excise.progress import Progress, silent
from excise.search.axes import Axes
from excise.search.front import choose, damage, missed, non_dominated, remaining, spread
from excise.search.methods import Method, method_named
from excise.search.objective import BehaviorObjective
from excise.search.proposer import front_of, leaders
from excise.search.result import FrontPoint, SearchResult, scores_in_json
from excise.search.study import METRICS, Study
from excise.search.task import TRIALS, Budget, Task, notes_of
from excise.search.trial import REMOVE, Measured, Trial

CONFIRMED = 9
_OF_FRONT, _LOW = 6, 0.1
"""How many points of the front are measured again on the select split."""

_SCHEMA = 4


def search(
    model: EditableModel,
    behavior: Behavior | str,
    *,
    method: str | None = None,
    strength: int = REMOVE,
    splits: Splits | None = None,
    directions: Directions | None = None,
    seed: int = 0,
    budget: Budget | str = "standard",
    trials: int | None = None,
    norm: Norm | None = None,
    directory: str | Path | None = None,
    max_kl: float | None = None,
    max_rate: float | None = None,
    preserve: float | None = None,
    rate_by: str | None = None,
    damage_by: str | None = None,
    seconds: float | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Search for edits that remove a behavior, or strengthen it, and change little else.

    Trials are scored on the `tune` split; the best of their front are measured again on `select`, where one is chosen
    (see `excise.search.front.choose`). The report split is never read. The same seed gives the same result; a search
    with a `directory` goes on where it was stopped, and then ends as if it had not been.

    method      how it searches: one of `excise.search.known_methods()`; by default the one that `default_method` says
    strength    1 removes the behavior; -1 strengthens it: what counts is then how many target prompts do not show it
                yet, and directions are written more (not every method can)
    splits      the behavior's own, made with `seed`, where not given
    directions  found on the `fit` split where not given
    budget      how much work; what that means is each method's own (docs/search-methods.md). `trials` says how many
    norm        of the edits: "none" or "column"; None lets it be searched
    directory   where the study is kept; None keeps it in memory
    max_kl      wanted: a first-token KL of at most this
    max_rate    wanted: a behavior rate of at most this; not where it is strengthened
    preserve    a dial: 0 takes the lowest rate of the front (strengthened: the highest), 1 the smallest sequence KL,
                0.5 weighs both alike
    rate_by     the score that is traded in place of the rate: one of `excise.evaluation.KEYS`, or a key of what a
                registered scorer returns (`a.b` for nested values); smaller is better, `-KEY` turns that round
    damage_by   the score that is traded in place of the KL
    seconds     how long the search may take, in place of `budget`; as its length then depends on the machine, so does
                its result
    max_tokens  of a response; by default the behavior's own; at least 128 on the select split

    Raises `InputError` for settings that cannot be, `PromptError`, `BehaviorError`, `ModelError`, `ScorerError`.
    """
    how, axes = method_for(method, strength=strength, max_rate=max_rate), Axes(rate_by, damage_by)
    axes.check()
    _check(budget, trials)
    behavior = Behavior.load(behavior) if isinstance(behavior, str) else behavior
    splits = splits or behavior.splits(seed=seed)
    if directions is None:
        directions = find_directions(
            model, behavior, splits=splits, seed=seed, batch_size=batch_size, progress=progress
        )
    goals = (max_kl, max_rate) if how.aims_at_goals else None
    settings: list[Any] = [how.name, goals, seed, budget, trials, seconds, norm, max_tokens]
    settings += [*([vars(axes)] if axes.keys else []), *([{"strength": strength}] if strength != REMOVE else [])]
    key = _key(model, behavior, splits, directions, settings)
    task = Task(
        model,
        behavior,
        splits,
        directions,
        Study(
            None if directory is None else Path(directory),
            key=key,
            metrics=(rate_by or (METRICS[0] if strength == REMOVE else f"1 - {METRICS[0]}"), damage_by or METRICS[1]),
        ),
        seed=seed,
        budget=budget,
        trials=trials,
        norm=norm,
        max_kl=max_kl,
        max_rate=max_rate,
        preserve=preserve,
        axes=axes,
        strength=strength,
        seconds=seconds,
        max_tokens=max_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    if axes.keys and not task.study.trials:
        _ = task.tune  # asks the scorers of the base model: what is wrong with them ends the search here
    how.run(task)
    return _result(_confirmed(task, how), task, how)


def method_for(name: str | None, *, strength: int = REMOVE, max_rate: float | None = None) -> Method:
    """The method of a search, checked before there is a model.

    name  None: the default, `polish`, or `schedule` where the behavior is strengthened

    Raises `InputError` for an unknown method or strength, for a method without this strength, and for a goal of
    `max_rate` where the behavior is strengthened.
    """
    if strength != REMOVE and max_rate is not None:
        raise InputError(
            "max_rate is a goal of removing, and strength -1 strengthens the behavior",
            hint="leave it out (--max-rate); --max-kl and --preserve say how far it may go",
        )
    return method_named(name or default_method(strength), strength=strength)


def default_method(strength: int = REMOVE) -> str:
    """The name of the method that is used where none is asked for."""
    return "polish" if strength == REMOVE else "schedule"


def _check(budget: str, trials: int | None) -> None:
    if budget not in TRIALS:
        raise InputError(f"unknown budget '{budget}'", hint=f"budgets: {', '.join(TRIALS)}")
    if trials is not None and trials < 1:
        raise InputError(f"a search of {trials} trials", hint="ask for at least one trial")


def _key(
    model: EditableModel, behavior: Behavior, splits: Splits, directions: Directions, settings: Sequence[Any]
) -> str:
    """Of all that trials depend on."""
    return runs.key(
        {
            "schema": _SCHEMA,
            "model": [model.identity.config_hash, model.identity.checkpoint_hash],
            "behavior": behavior.model_dump(mode="json", exclude={"target", "baseline", "keep", "description"}),
            "splits": splits.digest(),
            "directions": directions.digest(),
            "settings": settings,
        }
    )


def to_confirm(history: Sequence[Trial], *, max_kl: float | None = None) -> list[Trial]:
    """The trials that are measured again on unseen prompts.

    The front from light to thorough; then the leaders among other kinds of direction; then trials with low rates, as
    few prompts do not tell those apart: first the ones that prefill says to have more in reserve than what beats them.
    With `max_kl`, only trials within it, if there are any. Where every trial was screened, the first one.
    """
    measured = [trial for trial in history if not trial.measured.screened]
    within = [trial for trial in measured if max_kl is None or trial.measured.kl_first <= max_kl]
    pool = within or measured or list(history[:1])
    front, firm = (front_of(pool, firm=each) or pool for each in (False, True))
    light_to_thorough = [front[index] for index in spread(range(len(front)), most=_OF_FRONT)]
    others = [
        each
        for some in (firm, pool)
        for each in sorted(some, key=lambda each: damage(each.measured))
        if missed(each.measured) <= _LOW
    ]
    wanted = {trial.index: trial for trial in (*light_to_thorough, *leaders(pool)[:2], *others)}
    return list(wanted.values())[:CONFIRMED]


def _confirmed(task: Task, method: Method) -> list[FrontPoint]:
    """The trials worth it, measured again on prompts the search never saw, with their edits."""
    chosen = to_confirm(task.study.trials, max_kl=task.max_kl)
    edits = [method.edit(task, trial) for trial in chosen]
    tokens = confirm_tokens(task.behavior, task.max_tokens)
    objective = partial(task.measure, task.splits.select, screening=False, reserve=True, max_tokens=tokens)
    measured = _confirm(task, chosen, edits, objective)
    provenance = _provenance(task, method)
    return [_point(trial, found, edit, provenance) for trial, edit, found in zip(chosen, edits, measured, strict=True)]


def _confirm(
    task: Task, chosen: Sequence[Trial], edits: Sequence[Edit], objective: Callable[[], BehaviorObjective]
) -> list[Measured]:
    """Measure trials on the select split; what an earlier call measured is remembered."""
    names = [f"select {trial.index}" for trial in chosen]
    if any(task.study.note(name) is None for name in names):
        unseen = objective()
        for start in range(0, len(chosen), unseen.at_once):
            task.progress("confirming the front", start, len(chosen), "points")
            some = slice(start, start + unseen.at_once)
            missing = [name for name in names[some] if task.study.note(name) is None]
            measured = unseen.many(edits[some]) if missing else []
            for name, each in zip(names[some], measured, strict=bool(missing)):
                if name in missing:
                    task.study.remember(name, vars(each))
    task.progress("confirming the front", len(chosen), len(chosen), "points")
    return [Measured(**task.study.note(name)) for name in names]


def _provenance(task: Task, method: Method) -> dict[str, Any]:
    directions = task.directions
    return {
        "behavior": task.behavior.name,
        "splits": {"sizes": task.splits.sizes(), "sha256": task.splits.digest()},
        "seed": task.seed,
        "search": method.name,
        **({} if task.strength == REMOVE else {"strength": task.strength}),
        "directions": {
            "method": directions.method,
            "position": directions.positions[directions.best[0]],
            "layer": directions.best[1],
        },
        "versions": runs.versions(),
    }


def _point(trial: Trial, select: Measured, edit: Edit, provenance: Mapping[str, Any]) -> FrontPoint:
    tune = trial.measured
    share = tune.prompts / max(tune.prompts + select.prompts, 1)
    scores = {
        name: {"rate": each.rate, "kl_first": each.kl_first, "kl_sequence": each.kl_sequence, "prompts": each.prompts}
        | scores_in_json(each.scores)
        for name, each in (("tune", tune), ("select", select))
    }
    record = {**provenance, "trial": trial.index, "parameters": dict(trial.parameters)}
    return FrontPoint(
        rate=share * tune.rate + (1 - share) * select.rate,
        kl_first=(tune.kl_first + select.kl_first) / 2,
        kl_sequence=(tune.kl_sequence + select.kl_sequence) / 2,
        edit=edit.with_record(provenance=record, scores=scores),
        parameters=trial.parameters,
        tune=tune,
        select=select,
        trial=trial.index,
        scores={key: (tune.scores[key] + select.scores[key]) / 2 for key in tune.scores},
    )


def _result(points: list[FrontPoint], task: Task, method: Method) -> SearchResult:
    base = task.base_scores.get(task.axes.rate_by or "")
    choice = choose(points, max_kl=task.max_kl, max_rate=task.max_rate, preserve=task.preserve, base=base)
    taken = points[choice.index]
    on_front = non_dominated([(remaining(point), damage(point), point.reserve or 0.0) for point in points])
    kept = {choice.index, *on_front}
    front = sorted((points[index] for index in kept), key=lambda point: (remaining(point), damage(point)))
    return SearchResult(
        front=tuple(front),
        best=taken.edit,
        reason=("" if task.strength == REMOVE else "the behavior was strengthened: ") + choice.reason,
        satisfied=choice.satisfied,
        history=tuple(task.study.trials),
        seconds=round(sum(trial.seconds for trial in task.study.trials), 3),
        method=method.name,
        notes=notes_of(task.study),
        axes=task.axes,
        strength=task.strength,
        base_scores=task.base_scores,
    )
