"""How numbers are written, everywhere in the report and in the model card."""

from __future__ import annotations

from collections.abc import Iterable

NOT_MEASURED = "not measured"


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal where it is needed; never rounded to a 0 % or 100 % that it is not."""
    if value is None:
        return NOT_MEASURED
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 < value < 1:
        return ">99.9%"
    return f"{100 * value:.1f}".removesuffix(".0") + "%"


def interval(bounds: tuple[float, float] | None) -> str:
    """A confidence interval of a share; empty where there is none."""
    if bounds is None:
        return ""
    texts = [f"{100 * bound:.1f}" for bound in bounds]
    if all(text.endswith(".0") for text in texts):
        texts = [text.removesuffix(".0") for text in texts]
    return f"{texts[0]}–{texts[1]}%"


def rate(value: float | None, bounds: tuple[float, float] | None) -> str:
    """A share with its interval."""
    return f"{percent(value)} ({interval(bounds)})" if value is not None and bounds else percent(value)


def significant(value: float | None) -> str:
    """Three significant digits: KL divergences and ratios."""
    if value is None:
        return NOT_MEASURED
    return "0" if value == 0 else f"{value:#.3g}".removesuffix(".")


def leak(value: float | None) -> str:
    """Two digits and the exponent: 2.1e-07."""
    if value is None:
        return NOT_MEASURED
    return "0" if value == 0 else f"{value:.1e}"


def plain(value: object) -> str:
    """A parameter of a trial or an unknown score: numbers with three digits, everything else as it is."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds for people: 0.4 s, 41 s, 3 min 12 s, 1 h 4 min."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def count(number: int, singular: str, plural: str | None = None) -> str:
    """`1 layer`, `36 layers`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def ranges(numbers: Iterable[int]) -> str:
    """`0–3, 7, 9–12`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)
