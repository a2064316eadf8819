"""The search, top to bottom: space, study, confirmation on unseen prompts, choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from excise import runs
from excise.behaviors import Behavior, Splits
from excise.directions import Directions
from excise.edit import Edit, Norm
from excise.errors import InputError
from excise.find import find_directions
from excise.model import EditableModel
from excise.progress import Progress, silent
from excise.search.front import choose, non_dominated, spread
from excise.search.objective import BehaviorObjective
from excise.search.proposer import TreeProposer, front_of, leaders
from excise.search.result import FrontPoint, SearchResult
from excise.search.space import Space
from excise.search.study import Study, run_study
from excise.search.sweep import MOST_POSITIONS, sources, sweep
from excise.search.trial import Measured, Parameters, Trial

Budget = Literal["quick", "standard", "thorough"]

TRIALS: Mapping[str, int] = {"quick": 24, "standard": 60, "thorough": 200}
CONFIRMED = 6
"""How many points of the front are measured again on the select split."""

_SCHEMA = 1
_SWEEP_TARGETS, _SWEEP_BASELINES, _SWEEP_TOKENS = 24, 16, 16


def search(
    model: EditableModel,
    behavior: Behavior | str,
    *,
    splits: Splits | None = None,
    directions: Directions | None = None,
    seed: int = 0,
    budget: Budget | str = "standard",
    trials: int | None = None,
    norm: Norm | None = None,
    directory: str | Path | None = None,
    max_kl: float | None = None,
    max_rate: float | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> SearchResult:
    """Search for edits that remove a behavior and change little else.

    Trials are scored on the `tune` split; the best of their front are measured again on `select`, where one is chosen
    (see `excise.search.front.choose`). The report split is never read. The same seed gives the same result; a search
    with a `directory` goes on where it was stopped, and then ends as if it had not been.

    splits      the behavior's own, made with `seed`, where not given
    directions  found on the `fit` split where not given
    budget      how many trials: 24, 60 or 200; `trials` says it exactly
    norm        of the edits: "none" or "column"; None lets it be searched
    directory   where the study is kept; None keeps it in memory
    max_kl      wanted: a first-token KL of at most this
    max_rate    wanted: a behavior rate of at most this
    max_tokens  of a response; by default the behavior's own

    Raises `InputError` for settings that cannot be, `PromptError`, `BehaviorError`, `ModelError`.
    """
    wanted = _trials(budget, trials)
    behavior = Behavior.load(behavior) if isinstance(behavior, str) else behavior
    splits = splits or behavior.splits(seed=seed)
    if directions is None:
        directions = find_directions(
            model, behavior, splits=splits, seed=seed, batch_size=batch_size, progress=progress
        )
    study = Study(
        None if directory is None else Path(directory),
        key=_key(model, behavior, splits, directions, seed, wanted, norm, max_tokens),
    )

    measure = partial(
        BehaviorObjective.measure_base,
        model,
        behavior,
        max_tokens=max_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    tune = None if len(study.trials) >= wanted else measure(splits.tune)
    space, proposer = _plan(study, Space(model.survey, directions, norm=norm), tune, seed, wanted, progress)
    if tune is not None:
        run_study(
            study,
            proposer,
            tune,
            edit=space.edit,
            distributions=space.distributions,
            trials=wanted,
            progress=progress,
        )
    chosen = to_confirm(study.trials, max_kl=max_kl)
    confirmed = _confirm(study, chosen, space, partial(measure, splits.select, screening=False), progress)
    provenance = _provenance(behavior, splits, seed, directions)
    points = [
        _point(trial, measured, space.edit(trial.parameters), provenance)
        for trial, measured in zip(chosen, confirmed, strict=True)
    ]
    return _result(points, study, max_kl=max_kl, max_rate=max_rate)


def _trials(budget: str, trials: int | None) -> int:
    if budget not in TRIALS:
        raise InputError(f"unknown budget '{budget}'", hint=f"budgets: {', '.join(TRIALS)}")
    wanted = TRIALS[budget] if trials is None else trials
    if wanted < 1:
        raise InputError(f"a search of {wanted} trials", hint="ask for at least one trial")
    return wanted


def _key(
    model: EditableModel,
    behavior: Behavior,
    splits: Splits,
    directions: Directions,
    seed: int,
    trials: int,
    norm: Norm | None,
    max_tokens: int | None,
) -> str:
    """Of all that trials depend on."""
    return runs.key(
        {
            "schema": _SCHEMA,
            "model": [model.identity.config_hash, model.identity.checkpoint_hash],
            "behavior": behavior.model_dump(mode="json", exclude={"target", "baseline", "description"}),
            "splits": splits.digest(),
            "directions": directions.digest(),
            "seed": seed,
            "trials": trials,
            "norm": norm,
            "max_tokens": max_tokens,
        }
    )


def _plan(
    study: Study, everywhere: Space, tune: BehaviorObjective | None, seed: int, trials: int, progress: Progress
) -> tuple[Space, TreeProposer]:
    """The space around what is known to remove the behavior, and who proposes in it."""
    known = _sources(study, everywhere, tune, progress)
    positions = list(dict.fromkeys(str(each["position"]) for each in known))
    space = everywhere.at_positions(positions)
    return space, TreeProposer(space, seed=seed, trials=trials, sources=known)


def _sources(study: Study, space: Space, tune: BehaviorObjective | None, progress: Progress) -> Sequence[Parameters]:
    """Where to begin: what a sweep by prefill found, or by separability alone where the base model shows nothing."""
    known = study.note("sources")
    if known is not None:
        return list(known)
    if tune is None or not tune.base_rate:
        plain = [space.plain(), *(space.plain(position=position) for position in space.positions)]
        return list({str(each["position"]): each for each in plain}.values())[:MOST_POSITIONS]
    rough = tune.sample(targets=_SWEEP_TARGETS, baselines=_SWEEP_BASELINES, tokens=_SWEEP_TOKENS)
    swept = sweep(space, rough.prefill_many, base_rate=tune.base_rate, at_once=rough.at_once, progress=progress)
    found = sources(swept)
    study.remember("sources", [dict(each) for each in found])
    return found


def to_confirm(history: Sequence[Trial], *, max_kl: float | None = None) -> list[Trial]:
    """The trials that are measured again on unseen prompts.

    The two lowest rates of the front; then the leaders among other kinds of direction; then the rest of the front.
    With `max_kl`, only trials within it, if there are any. Where every trial was screened, the first one.
    """
    measured = [trial for trial in history if not trial.measured.screened]
    within = [trial for trial in measured if max_kl is None or trial.measured.kl_first <= max_kl]
    pool = within or measured or list(history[:1])
    front = front_of(pool) or pool
    rest = [front[index] for index in spread(range(len(front)), most=CONFIRMED)]
    wanted = {trial.index: trial for trial in (*front[:2], *leaders(pool)[:3], *rest)}
    return list(wanted.values())[:CONFIRMED]


def _confirm(
    study: Study,
    chosen: Sequence[Trial],
    space: Space,
    objective: Callable[[], BehaviorObjective],
    progress: Progress,
) -> list[Measured]:
    """Measure trials on prompts the search never saw; what an earlier call measured is remembered."""
    names = [f"select {trial.index}" for trial in chosen]
    if any(study.note(name) is None for name in names):
        unseen = objective()
        for start in range(0, len(chosen), unseen.at_once):
            progress("confirming the front", start, len(chosen), "points")
            some = slice(start, start + unseen.at_once)
            missing = [name for name in names[some] if study.note(name) is None]
            measured = unseen.many([space.edit(trial.parameters) for trial in chosen[some]]) if missing else []
            for name, each in zip(names[some], measured, strict=bool(missing)):
                if name in missing:
                    study.remember(name, vars(each))
    progress("confirming the front", len(chosen), len(chosen), "points")
    return [Measured(**study.note(name)) for name in names]


def _provenance(behavior: Behavior, splits: Splits, seed: int, directions: Directions) -> dict[str, Any]:
    return {
        "behavior": behavior.name,
        "splits": {"sizes": splits.sizes(), "sha256": splits.digest()},
        "seed": seed,
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
    )


def _result(points: list[FrontPoint], study: Study, *, max_kl: float | None, max_rate: float | None) -> SearchResult:
    choice = choose(points, max_kl=max_kl, max_rate=max_rate)
    taken = points[choice.index]
    on_front = non_dominated([(point.rate, point.kl_sequence) for point in points])
    kept = {choice.index, *on_front}
    front = sorted((points[index] for index in kept), key=lambda point: (point.rate, point.kl_sequence))
    return SearchResult(
        front=tuple(front),
        best=taken.edit,
        reason=choice.reason,
        satisfied=choice.satisfied,
        history=tuple(study.trials),
        seconds=round(sum(trial.seconds for trial in study.trials), 3),
    )
