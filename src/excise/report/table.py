"""What the page is made of: tables, and the status of a claim."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """Whether a claim holds. The value names the style of its mark."""

    PASS = "pass"
    MISS = "miss"
    OPEN = "open"


@dataclass(frozen=True)
class Mark:
    """A status with the word that says it without colour."""

    status: Status
    word: str

    def __str__(self) -> str:
        return self.word


PASSED = Mark(Status.PASS, "pass")
MISSED = Mark(Status.MISS, "miss")
UNMEASURED = Mark(Status.OPEN, "not measured")
NO_GOAL = Mark(Status.OPEN, "no goal set")


def judge(holds: bool | None) -> Mark:
    """Pass, miss, or not measured."""
    return UNMEASURED if holds is None else PASSED if holds else MISSED


@dataclass(frozen=True)
class Table:
    """A table with a caption that says what it shows; the first cell of a row is its header.

    numeric  the columns (by index) that hold numbers
    """

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str | Mark, ...], ...]
    numeric: frozenset[int] = frozenset()
