"""How long work reports on itself: a callback, never a print."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Called as often as convenient; whoever renders it throttles, and derives rates and the time left."""

    def __call__(self, label: str, done: int, total: int, unit: str = "") -> None:
        """`done` of `total` units of the work called `label` are finished."""


def silent(label: str, done: int, total: int, unit: str = "") -> None:
    """The default: nothing is shown."""
