"""The registry of scorers: adding one is adding one file that registers a function."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.behaviors import Behavior, PromptSet
from excise.errors import ExciseError, InputError, ScorerError
from excise.evaluation.reference import Divergence, Reference
from excise.model import EditableModel
from excise.model.generate import Response
from excise.progress import Progress, silent


@dataclass(frozen=True)
class Subject:
    """What a scorer measures: the model as it is now, with whatever edit is live.

    reference   what the base model does on the baseline prompts
    max_tokens  per response; None: the behavior's own
    responses   to the target prompts, where they were generated already (see `excise.evaluation.responses`)
    baseline_responses  the same for the baseline prompts
    keep_responses      and for those where the behavior must stay; empty where there are none, or they were not asked
    divergence  from the reference, where it was measured already
    """

    model: EditableModel
    behavior: Behavior
    prompts: PromptSet
    reference: Reference
    max_tokens: int | None = None
    batch_size: int | None = None
    progress: Progress = silent
    responses: tuple[Response, ...] = ()
    baseline_responses: tuple[Response, ...] = ()
    divergence: Divergence | None = None
    keep_responses: tuple[Response, ...] = ()


Scorer = Callable[[Subject], Mapping[str, Any]]
_SCORERS: dict[str, Scorer] = {}
_KEYS: dict[str, tuple[str, ...]] = {}


def scorer(name: str, *, keys: Sequence[str] | None = None) -> Callable[[Scorer], Scorer]:
    """Register a function under `name`. It returns JSON values by key; keys of different scorers must differ.

    keys  that it returns, where it says so: a search for another one (`rate_by`, `damage_by`) is then refused at once
    """

    def register(function: Scorer) -> Scorer:
        if name in _SCORERS:
            raise InputError(f"there is a scorer '{name}' already", hint="choose another name")
        _SCORERS[name] = function
        if keys is not None:
            _KEYS[name] = tuple(keys)
        return function

    return register


def scorers() -> Mapping[str, Scorer]:
    """Every registered scorer by name, in the order of registration."""
    return dict(_SCORERS)


def restore(known: Mapping[str, Scorer]) -> None:
    """Have these registered and no others: what `scorers` gave before."""
    _SCORERS.clear()
    _SCORERS.update(known)


def replace(name: str, function: Scorer) -> None:
    """Register a function under `name` in place of the one that has it, if any does."""
    _SCORERS[name] = function


def declared_keys(name: str) -> tuple[str, ...] | None:
    """The keys that a scorer said it returns; None where it did not say."""
    return _KEYS.get(name)


def failed(what: str, error: Exception, *, hint: str) -> ScorerError:
    """The error for whatever went wrong in somebody's code: what it is, and in which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)[1:2]
    where = "".join(f" in {Path(frame.filename).name}, line {frame.lineno}" for frame in frames)
    return ScorerError(f"{what} failed{where}: {type(error).__name__}: {error}", hint=hint)


def ask(name: str, subject: Subject) -> Mapping[str, Any]:
    """What a scorer finds. Raises `ScorerError`, which names it, for whatever goes wrong in there."""
    if name not in _SCORERS:
        raise ScorerError(
            f"there is no scorer '{name}' in this process", hint="register it as before, as with --scorer-module"
        )
    try:
        values: Any = _SCORERS[name](subject)
    except ExciseError:  # says what to do about it already
        raise
    except Exception as error:
        hint = "mend the scorer and call the same command again: what is finished is kept"
        raise failed(f"the scorer '{name}'", error, hint=hint) from error
    if not isinstance(values, Mapping):
        raise ScorerError(
            f"the scorer '{name}' returned a {type(values).__name__}", hint="return a dictionary of JSON values"
        )
    return values
