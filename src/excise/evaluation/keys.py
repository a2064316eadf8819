"""Single numbers out of all that is measured, by key: what a search can be asked to trade.

A key is a dotted path into `Scores.to_json()`: a value that is always measured (`KEYS`) or one of a registered scorer.
Every value is better when smaller; `-KEY` says that one is better when larger, and stands for its negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain
from math import inf, isfinite
from numbers import Real
from typing import Any

from excise.errors import InputError, ScorerError
from excise.evaluation.labels import LABELS
from excise.evaluation.registry import Subject, ask, declared_keys, scorers
from excise.evaluation.requested import request_for_keys
from excise.evaluation.statistics import Summary

KEYS: tuple[str, ...] = (
    "rate",
    *(f"labels.{label}" for label in LABELS),
    *(f"{kl}.{each.name}" for kl in ("kl_first", "kl_sequence") for each in fields(Summary)),
    "top1",
    "perplexity_ratio",
)
"""Of what is measured without a registered scorer."""

_HEADS = frozenset(key.partition(".")[0] for key in KEYS)


def path_of(key: str) -> str:
    """A key without the minus of what is better when larger."""
    return key.removeprefix("-")


def is_built_in(key: str) -> bool:
    """Whether a key is of what is measured without a registered scorer."""
    return path_of(key) in KEYS


def value_at(values: Mapping[str, Any], key: str) -> float | None:
    """The number at a key, smaller being better, and what is not finite the worst; None where there is no number."""
    found = _at(values, path_of(key))
    if not isinstance(found, Real):
        return None
    value = -float(found) if key.startswith("-") else float(found)
    return value if isfinite(value) else inf


def check_keys(keys: Sequence[str]) -> None:
    """Refuse a key that cannot be one, without running any scorer. Raises `InputError`.

    What comes with the package and is run when asked for (`judge.rate`) is asked for by its key.
    Scorers that do not say which keys they return may return any: what is left open then is told by `locate`.
    """
    request_for_keys([key for key in keys if not is_built_in(key)])
    for key in keys:
        path = path_of(key)
        taken = path.partition(".")[0] in _HEADS | {""}
        if not is_built_in(key) and (taken or not _candidates(path)):
            raise _unknown(key, [*KEYS, *chain(*(declared_keys(name) or () for name in scorers()))])


def locate(keys: Sequence[str], subject: Subject) -> tuple[dict[str, str], dict[str, float]]:
    """Which scorer returns each key that is not built in, and what it returns for this subject.

    Asks those that say they return it, then the one of that name, then those that do not say what they return. Raises
    `InputError` for a key that none of them returns, `ScorerError`.
    """
    said: dict[str, Mapping[str, Any]] = {}
    sources: dict[str, str] = {}
    found: dict[str, float] = {}
    for key in keys:
        if is_built_in(key):
            continue
        for name in _candidates(path_of(key)):
            if name not in said:
                said[name] = ask(name, subject)
            value = value_at(said[name], key)
            if value is not None:
                sources[key], found[key] = name, value
                break
        else:
            raise _unknown(key, [*KEYS, *chain(*(_numbers(values) for values in said.values()))])
    return sources, found


def scores_of(sources: Mapping[str, str], subject: Subject) -> dict[str, float]:
    """The value of each key, from the scorer that returns it; each scorer is asked once. Raises `ScorerError`."""
    said = {name: ask(name, subject) for name in dict.fromkeys(sources.values())}
    found: dict[str, float] = {}
    for key, name in sources.items():
        value = value_at(said[name], key)
        if value is None:
            raise ScorerError(
                f"the scorer '{name}' returned no number for '{path_of(key)}'",
                hint="return the same keys for every edit; NaN where there is no value, which counts as the worst",
            )
        found[key] = value
    return found


def _at(values: Mapping[str, Any], path: str) -> Any:
    """The value at a path; keys may hold dots themselves."""
    if path in values:
        return values[path]
    for place, character in enumerate(path):
        inner = values.get(path[:place]) if character == "." else None
        found = _at(inner, path[place + 1 :]) if isinstance(inner, Mapping) else None
        if found is not None:
            return found
    return None


def _candidates(path: str) -> list[str]:
    """The scorers that may return what is at a path, the likeliest first."""
    says = [name for name in scorers() if any(f"{path}.".startswith(f"{key}.") for key in declared_keys(name) or ())]
    open_ones = [name for name in scorers() if declared_keys(name) is None]
    head = path.partition(".")[0]
    return [*says, *sorted(open_ones, key=lambda name: name != head)]


def _numbers(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The paths of all numbers."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{key}.")
        elif isinstance(value, Real):
            yield f"{before}{key}"


def _unknown(key: str, known: Sequence[str]) -> InputError:
    return InputError(
        f"no scorer returns a number as '{path_of(key)}'",
        hint=f"known keys: {', '.join(known)}; --scorer-module FILE.py adds scorers of your own",
    )
