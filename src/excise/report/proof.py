"""Tables of what was proven, how far the edit reaches, and how to run it again."""

from __future__ import annotations

import re
from collections import defaultdict

from excise.report import edited, formats
from excise.report.edited import ROLES
from excise.report.headline import BAKED_LEAK_BOUND, baked_leak_holds, leak_bound, leak_holds
from excise.report.record import Record, as_number
from excise.report.table import Mark, Table, judge

_SHA256 = re.compile(r"[0-9a-f]{64}")
_INDEX = re.compile(r"\.\d+(?=\.|$)")


def writers(result: Record) -> Table | None:
    """The writers by role and place in the layer; None where the survey is not in the result."""
    groups: dict[tuple[str, str, bool, bool], list[int]] = defaultdict(list)
    for writer in result.items("survey", "writers"):
        parameter = _INDEX.sub(".*", writer.text("parameter") or "–")
        extras = _has(writer.at("bias")), _has(writer.at("gain"))
        layer = writer.number("layer")
        groups[writer.text("role") or "unknown", parameter, *extras].append(-1 if layer is None else int(layer))
    if not groups:
        return None
    order = sorted(groups.items(), key=lambda item: ROLES.index(item[0][0]) if item[0][0] in ROLES else len(ROLES))
    rows = tuple(
        (
            role,
            parameter,
            formats.ranges(layer for layer in layers if layer >= 0) or "–",
            f"{len(layers):,}",
            "yes" if bias else "–",
            "yes" if gain else "–",
        )
        for (role, parameter, bias, gain), layers in order
    )
    headers = ("Role", "Parameter (* is a number)", "Layers", "Count", "Bias", "Norm behind it")
    return Table("Writers of the residual stream", headers, rows, frozenset({3}))


def unresolved(result: Record) -> Table | None:
    """What reaches the residual stream and cannot be edited exactly."""
    rows = []
    for item in result.items("survey", "unresolved"):
        layer = item.number("layer")
        names = item.texts("parameters") or item.texts("parameter") or (item.text() or "–",)
        rows.append(
            (", ".join(names), "–" if layer is None else f"{layer:g}", item.text("reason") or "no reason given")
        )
    if not rows:
        return None
    return Table("Not covered", ("Parameter", "Layer", "Why"), tuple(rows), frozenset({1}))


def leaks(result: Record) -> Table:
    """The leak of the live edit and of the baked model."""
    live, baked = result.number("leak"), result.number("leak_baked")
    return Table(
        "Leak: what is left of a direction that was removed at strength 1",
        ("", "Leak", "Bound", "Result"),
        (
            ("Every writer, live", formats.leak(live), formats.leak(leak_bound(result)), judge(leak_holds(result))),
            (
                "Baked weights, their own precision",
                formats.leak(baked),
                _baked_bound(result),
                judge(None if baked is None else baked_leak_holds(result)),
            ),
        ),
        frozenset({1, 2}),
    )


def checks(result: Record) -> Table | None:
    """The checks of the baked model; None where there are none."""
    rows: list[tuple[str | Mark, ...]] = []
    for check in result.items("verify", "checks"):
        rows.append((check.text("name") or "unnamed", judge(check.flag("passed")), check.text("detail") or ""))
    if not rows:
        return None
    return Table("Verification of the baked model", ("Check", "Result", "Detail"), tuple(rows))


def stages(result: Record) -> Table | None:
    """How long each stage took."""
    rows = [
        (name, formats.duration(seconds))
        for name, value in result.fields("stages").items()
        if (seconds := as_number(value)) is not None
    ]
    total = result.number("seconds")
    if total is not None:
        rows.append(("whole run", formats.duration(total)))
    return Table("Time", ("Stage", "Took"), tuple(rows), frozenset({1})) if rows else None


def settings(result: Record) -> tuple[tuple[str, str], ...]:
    """What it takes to get the same result again, as (name, value)."""
    found = [
        (name, text)
        for name, key in (("Model", "model"), ("Revision", "revision"), ("Behavior", "behavior"), ("Seed", "seed"),
                          ("Budget", "budget"), ("Made", "created"))
        if (text := result.text(key)) is not None
    ]  # fmt: skip
    for name, key in (("Direction method", "method"), ("Token positions", "positions")):
        if texts := result.texts("directions", key):
            found.append((name, ", ".join(texts)))
    if (method := result.text("search", "method")) is not None:
        found.append(("Search method", method))
    if changes := edited.changes(result):
        found.append(("Changes", changes))
    if (norm := result.text("edit", "norm")) is not None:
        found.append(("Norm mode", norm))
    if (file := result.text("edit", "file")) is not None:
        found.append(("Edit file", file))
    for name, key in (("Trials", "trials"), ("Screened out early", "screened")):
        if (number := result.number("search", key)) is not None:
            found.append((name, f"{number:,g}"))
    return tuple(found)


def versions(result: Record) -> tuple[tuple[str, str], ...]:
    """Versions of the software."""
    return tuple((name, str(value)) for name, value in result.fields("versions").items())


def digests(result: Record) -> tuple[tuple[str, str], ...]:
    """SHA-256 of the prompts of each split: the prompts themselves are not in the report."""
    found: list[tuple[str, str]] = []
    for key in ("prompts", "digests"):
        for split, value in result.fields(key).items():
            sides = Record(value).fields() or {"": value}
            for side, digest in sides.items():
                if isinstance(digest, str) and _SHA256.fullmatch(digest):  # nothing else: a prompt must never get in
                    found.append((f"{split} {side}".strip(), digest))
    return tuple(found)


def _has(value: object) -> bool:
    return value is not None and value is not False and value != ""


def _baked_bound(result: Record) -> str:
    """The bound of the baked model's leak; the verification's own is in its detail."""
    by_check = any(check.text("name") == "leak" for check in result.items("verify", "checks"))
    return "see verification" if by_check else formats.leak(BAKED_LEAK_BOUND)
