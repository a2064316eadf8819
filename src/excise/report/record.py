"""Reading a result that may lack anything: what is missing, null or not of the expected kind reads as None or empty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """A view of one JSON value. Its methods take the keys that lead to what is asked for, and never raise."""

    value: object

    def at(self, *keys: str) -> object:
        """The raw value at a path of keys; None where the path ends early."""
        value = self.value
        for key in keys:
            if not isinstance(value, Mapping):
                return None
            value = value.get(key)
        return value

    def record(self, *keys: str) -> Record:
        """The object at a path."""
        return Record(self.at(*keys))

    def number(self, *keys: str) -> float | None:
        """A finite number; None for NaN and infinity, which are no measurements."""
        return as_number(self.at(*keys))

    def text(self, *keys: str) -> str | None:
        """A string that is not blank, or a number as one."""
        value = self.at(*keys)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        return str(value).strip() or None

    def flag(self, *keys: str) -> bool | None:
        """True or false."""
        value = self.at(*keys)
        return value if isinstance(value, bool) else None

    def items(self, *keys: str) -> tuple[Record, ...]:
        """The members of a list."""
        value = self.at(*keys)
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            return ()
        return tuple(Record(item) for item in value)

    def fields(self, *keys: str) -> dict[str, object]:
        """The members of an object."""
        value = self.at(*keys)
        return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}

    def pair(self, *keys: str) -> tuple[float, float] | None:
        """A list of two numbers."""
        numbers = [item.number() for item in self.items(*keys)]
        if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
            return None
        return numbers[0], numbers[1]

    def texts(self, *keys: str) -> tuple[str, ...]:
        """A list of strings, or one string as a list of one."""
        single = self.at(*keys)
        if isinstance(single, str):
            return (single.strip(),) if single.strip() else ()
        return tuple(text for item in self.items(*keys) if (text := item.text()) is not None)


def as_number(value: object) -> float | None:
    """A finite number as a float, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
