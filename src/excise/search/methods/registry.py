"""The registry of search methods: a new one is one file with a `@register` line, imported in this package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

from excise.edit import Edit
from excise.errors import InputError
from excise.search.task import Task
from excise.search.trial import REMOVE, Trial, check_strength


class Method(ABC):
    """A way to search. It has no state of its own: all that it knows of a search is in the task and its study."""

    name: ClassVar[str]
    """As users write it."""
    summary: ClassVar[str]
    """What it is, in one line."""
    aims_at_goals: ClassVar[bool] = False
    """Whether its trials depend on `max_kl` and `max_rate`, so that other goals are another search."""
    strengthens: ClassVar[bool] = False
    """Whether it can do a task with strength -1: make the behavior show more often instead of less."""

    @abstractmethod
    def run(self, task: Task) -> None:
        """Add trials to `task.study` until the search is done, and at least one.

        A study that has some already goes on as if it had never been stopped, and one that is done is left alone at
        once: without measuring anything. The same task always gives the same trials.
        """

    @abstractmethod
    def edit(self, task: Task, trial: Trial) -> Edit:
        """The edit of a trial of this method; its provenance is left to the caller."""


_METHODS: dict[str, Method] = {}
Registered = TypeVar("Registered", bound=type[Method])


def register(method: Registered) -> Registered:
    """Make a method known under its name."""
    _METHODS[method.name] = method()
    return method


def known_methods() -> tuple[str, ...]:
    """The names of all methods."""
    return tuple(sorted(_METHODS))


def method_named(name: str, *, strength: int = REMOVE) -> Method:
    """The method called `name`. Raises `InputError`, also where it has no searches of that strength."""
    check_strength(strength)
    if name not in _METHODS:
        raise InputError(f"unknown search method '{name}'", hint=f"known: {', '.join(known_methods())}")
    found = _METHODS[name]
    if strength != REMOVE and not found.strengthens:
        able = ", ".join(known for known, each in sorted(_METHODS.items()) if each.strengthens)
        raise InputError(f"the method '{name}' only removes: it has no strength -1", hint=f"methods that do: {able}")
    return found
