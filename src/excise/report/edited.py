"""What the chosen edit does to the writers: strengths of projections, sizes of low-rank changes."""

from __future__ import annotations

from collections import Counter, defaultdict

from excise.report import formats
from excise.report.record import Record

ROLES = ("embedding", "attention", "mlp", "expert", "mixer")
"""The kinds of writers, in the order in which they are shown."""

_NAMES = {"projection": "projections", "low-rank": "low-rank changes", "mixed": "projections with low-rank changes"}

ByRole = dict[str, dict[int, list[float]]]
"""role -> layer -> one number per writer."""


def has_low_rank(result: Record) -> bool:
    """Whether any writer of the chosen edit gets more than projections, whose strengths would not say it all."""
    return any(kind != "projection" for kind in kinds(result))


def strengths(result: Record) -> ByRole:
    """Strengths of projections; writers of an edited role that the edit leaves out count as 0."""
    return _by_role(result, "strength")


def sizes(result: Record) -> ByRole:
    """‖ΔW‖ / ‖W‖ of every writer, in the same way; those whose size is not known are not in it."""
    return _by_role(result, "change")


def unmeasured(result: Record) -> int:
    """How many edited writers have a change of unknown size."""
    return sum(site.number("change") is None for site in result.items("edit", "sites"))


def kinds(result: Record) -> Counter[str]:
    """How many writers get changes of each kind."""
    return Counter(_kind(site) for site in result.items("edit", "sites"))


def changes(result: Record) -> str:
    """The kinds of changes in words, as `low-rank changes (rank 1) of 60 weights, projections of 12 weights`."""
    return ", ".join(
        f"{_NAMES.get(kind, kind)}{ranks(result, kind)} of {formats.count(number, 'weight')}"
        for kind, number in kinds(result).most_common()
    )


def ranks(result: Record, *among: str) -> str:
    """Of the changes of these kinds: ` (rank 1)` or ` (ranks 1–3)`; empty where they are not known."""
    sites = (site for site in result.items("edit", "sites") if _kind(site) in among)
    found = [int(rank) for site in sites if (rank := site.number("rank")) is not None]
    if not found:
        return ""
    return f" (rank {min(found)})" if min(found) == max(found) else f" (ranks {min(found)}–{max(found)})"


def _kind(site: Record) -> str:
    """Results of earlier versions hold projections alone, and do not say so."""
    return site.text("kind") or "projection"


def _by_role(result: Record, key: str) -> ByRole:
    found: ByRole = defaultdict(lambda: defaultdict(list))
    edited = set()
    for site in result.items("edit", "sites"):
        layer, value = site.number("layer"), site.number(key)
        edited.add(site.text("parameter"))
        if layer is not None and value is not None:
            found[site.text("role") or "unknown"][int(layer)].append(value)
    for writer in result.items("survey", "writers"):
        role, layer = writer.text("role"), writer.number("layer")
        if role in found and layer is not None and writer.text("parameter") not in edited:
            found[role][int(layer)].append(0.0)
    order = sorted(found, key=lambda role: ROLES.index(role) if role in ROLES else len(ROLES))
    return {role: {layer: found[role][layer] for layer in sorted(found[role])} for role in order}
