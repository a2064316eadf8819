"""The parameters of a trial in words."""

from __future__ import annotations

from excise.report import formats
from excise.report.record import Record

_POSITIONS = {"response": "mean over the response"}
_KINDS = ("closed form", "polish", "between")
_KNOWN = ("kind", "step", "along", "strength", "method", "reach", "source", "position", "preserve")


def position_name(position: str) -> str:
    """A token position in words."""
    if position in _POSITIONS:
        return _POSITIONS[position]
    if position.startswith("+") and position[1:].isdigit():
        return "first response token" if position == "+1" else f"response token {position[1:]}"
    if position.startswith("-") and position[1:].isdigit():
        return "last prompt token" if position == "-1" else f"prompt token {position}"
    return position


def parameters_in_words(parameters: Record) -> tuple[str, ...]:
    """A phrase for each; those of a closed form and of its polish say what they stand for, others are as they are.

    A direction is one layer's for all writers, or each layer's own. The preserving weight is how much staying close to
    the base model counts in the polish.
    """
    kind, fields = parameters.text("kind"), parameters.fields()
    if kind not in _KINDS:
        return tuple(f"{name.replace('_', ' ')} {formats.plain(value)}" for name, value in fields.items())
    numbers = [("preserve", "preserving weight")] * (kind == "polish")
    if parameters.number("strength") != 1.0:
        numbers = [("strength", "strength"), *numbers]
    return (
        _edit(kind, parameters),
        _direction(parameters),
        *(f"{name} {value:.3g}" for key, name in numbers if (value := parameters.number(key)) is not None),
        *(f"{name.replace('_', ' ')} {formats.plain(fields[name])}" for name in fields if name not in _KNOWN),
    )


def _edit(kind: str, parameters: Record) -> str:
    """`closed form`, `polished for 45 steps`, `polish, 40% of the way from phase 1 to phase 2`."""
    step, along = parameters.number("step"), parameters.number("along")
    if kind == "polish":
        return f"polished for {formats.count(int(step), 'step')}" if step else "polished"
    if kind == "between" and along is not None and along >= 0:
        before, share = divmod(along, 1.0)
        if share:
            return f"polish, {formats.percent(share)} of the way from {_phase(before)} to {_phase(before + 1)}"
        return f"polish, {_phase(before)}" if before else "closed form"
    return kind if kind == "closed form" else "between phases of the polish"


def _phase(number: float) -> str:
    return f"phase {number:g}" if number else "the closed form"


def _direction(parameters: Record) -> str:
    """`mean-difference direction of layer 14 (last prompt token)`."""
    source, position = parameters.number("source"), parameters.text("position")
    method = parameters.text("method")
    text = "direction" if method is None else f"{method} direction"
    if parameters.text("reach") == "per-layer":
        text += " of each layer"
    elif source is not None:
        text += f" of layer {source:.3g}"
    return text + (f" ({position_name(position)})" if position else "")
