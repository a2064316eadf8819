"""The registry of scorers: adding one is adding one file that registers a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from excise.behaviors import Behavior, PromptSet
from excise.errors import InputError
from excise.evaluation.reference import Reference
from excise.model import EditableModel
from excise.progress import Progress, silent


@dataclass(frozen=True)
class Subject:
    """What a scorer measures: the model as it is now, with whatever edit is live.

    reference   what the base model does on the baseline prompts
    max_tokens  per response; None: the behavior's own
    """

    model: EditableModel
    behavior: Behavior
    prompts: PromptSet
    reference: Reference
    max_tokens: int | None = None
    batch_size: int | None = None
    progress: Progress = silent


Scorer = Callable[[Subject], Mapping[str, Any]]
_SCORERS: dict[str, Scorer] = {}


def scorer(name: str) -> Callable[[Scorer], Scorer]:
    """Register a function under `name`. It returns JSON values by key; keys of different scorers must differ."""

    def register(function: Scorer) -> Scorer:
        if name in _SCORERS:
            raise InputError(f"there is a scorer '{name}' already", hint="choose another name")
        _SCORERS[name] = function
        return function

    return register


def scorers() -> Mapping[str, Scorer]:
    """Every registered scorer by name, in the order of registration."""
    return dict(_SCORERS)
