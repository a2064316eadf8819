"""The registry of methods: a new one is one file with a `@register` line."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from excise.errors import InputError

Means = Float[Tensor, "position layer hidden"]
Method = Callable[[Means, Means], Means]
"""From the mean residuals of target and baseline prompts to directions, not normalised."""

_METHODS: dict[str, Method] = {}


def register(name: str) -> Callable[[Method], Method]:
    """Make a method known under `name`."""

    def known(method: Method) -> Method:
        _METHODS[name] = method
        return method

    return known


def known_methods() -> tuple[str, ...]:
    """The names of all methods."""
    return tuple(sorted(_METHODS))


def method_named(name: str) -> Method:
    """The method called `name`. Raises `InputError`."""
    if name not in _METHODS:
        raise InputError(f"unknown direction method '{name}'", hint=f"known: {', '.join(known_methods())}")
    return _METHODS[name]
