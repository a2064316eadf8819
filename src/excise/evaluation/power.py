"""What a sample of this size can show: a claim that it cannot is no result."""

from __future__ import annotations

from typing import Any

from scipy import stats

from excise.errors import InputError

POWER = 0.8
CONFIDENCE = 0.95
_FEWEST = 6  # prompts that must change, all in one direction, for the exact test to reach 5 %: 2 · 0.5⁶ = 3.1 %


def highest_rate(count: int, total: int, *, confidence: float = CONFIDENCE) -> float:
    """The highest rate that `count` of `total` does not rule out: the one-sided bound of Clopper and Pearson (1934).

    0 of n leaves 1 − 0.05^(1/n), about 3/n (the rule of three). Raises `InputError`.
    """
    _check(count, total)
    return 1.0 if count == total else float(stats.beta.ppf(confidence, count + 1, total - count))


def lowest_rate(count: int, total: int, *, confidence: float = CONFIDENCE) -> float:
    """The lowest rate that `count` of `total` does not rule out, from the other side."""
    _check(count, total)
    return 1.0 - highest_rate(total - count, total, confidence=confidence)


def smallest_difference(total: int, *, power: float = POWER) -> float | None:
    """The smallest fall of a rate that the exact McNemar test at 5 % finds with this power, on `total` prompts.

    That is where the edit takes the behavior away and adds it nowhere, so that at least six prompts must change: the
    rate d with P(Binomial(total, d) ≥ 6) = power. Where it also adds some, more is needed. None where even a fall from
    100 % to 0 % would not be found.
    """
    return float(stats.beta.ppf(power, _FEWEST, total - _FEWEST + 1)) if total >= _FEWEST else None


def power_note(count: int, total: int) -> str:
    """In a sentence or two, what a rate of `count` in `total` prompts cannot tell. Raises `InputError`."""
    prompts = f"{total} prompts" if total != 1 else "1 prompt"
    if count == total:
        first = f"{prompts} cannot tell a rate of 100 % from {_percent(lowest_rate(count, total))}"
    else:
        first = f"{prompts} cannot tell a rate of {_percent(count / total)} from {_percent(highest_rate(count, total))}"
    found = smallest_difference(total)
    if found is None:
        second = "no difference between two models could be shown on so few"
    else:
        second = f"a paired test finds a difference of {100 * found:.1f} points or more with 80 % power"
    return f"{first}; {second}"


def describe(count: int, total: int) -> dict[str, Any]:
    """`highest_rate`, `smallest_difference` and the `note`, as JSON values."""
    return {
        "highest_rate": highest_rate(count, total),
        "smallest_difference": smallest_difference(total),
        "note": power_note(count, total),
    }


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %" if rate in (0.0, 1.0) else f"{100 * rate:.1f} %"


def _check(count: int, total: int) -> None:
    if not 0 <= count <= total or total == 0:
        raise InputError(f"{count} of {total} prompts say nothing", hint="measure at least one prompt")
