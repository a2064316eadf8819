"""How long work reports on itself: a callback, never a print."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Called as often as convenient; whoever renders it throttles, and derives rates and the time left."""

    def __call__(self, label: str, done: int, total: int, unit: str = "") -> None:
        """`done` of `total` units of the work called `label` are finished."""


@runtime_checkable
class Teller(Protocol):
    """A `Progress` that can also say a sentence."""

    def tell(self, sentence: str) -> None:
        """Show a sentence that is worth a line of its own."""


def tell(progress: Progress, sentence: str) -> None:
    """Say a sentence where the progress can; it is lost otherwise."""
    if isinstance(progress, Teller):
        progress.tell(sentence)


def silent(label: str, done: int, total: int, unit: str = "") -> None:
    """The default: nothing is shown."""
