"""The points of a search as the result holds them: the front, the other trials, and which one was chosen."""

from __future__ import annotations

import html
from dataclasses import dataclass, replace

from excise.report import formats
from excise.report.parameters import parameters_in_words
from excise.report.record import Record

KL_NAMES = {"kl_first": "First-token KL", "kl_sequence": "Sequence KL"}


@dataclass(frozen=True)
class Point:
    """An edit that was tried: `kl` is the one that is drawn, `first` and `sequence` what is known of both."""

    rate: float
    kl: float
    first: float | None
    sequence: float | None
    parameters: tuple[str, ...] = ()
    edit: str = ""
    chosen: bool = False
    screened: bool = False

    def hover(self, kind: str) -> str:
        """The text of the box over the point, safe to be read as HTML."""
        lines = [f"behavior shown {formats.percent(self.rate)}"]
        for name, value in zip(KL_NAMES.values(), (self.first, self.sequence), strict=True):
            if value is not None:
                lines.append(f"{name} {formats.significant(value)}")
        lines += self.parameters
        return "<br>".join([f"<b>{kind}</b>", *(html.escape(line) for line in lines)]) + "<extra></extra>"


def read_points(result: Record) -> tuple[list[Point], list[Point], str]:
    """The front by increasing KL, the trials that are not on it, and which KL was taken.

    That is the sequence KL, which the front is about, where every point of the front has one; else the first-token KL.
    """
    front, trials = result.items("front"), result.items("search", "points")
    key = "kl_first"
    known = front or trials
    if known and all(item.number("kl_sequence") is not None for item in known):
        key = "kl_sequence"
    chosen = _chosen(result)
    best = [
        replace(point, chosen=index == chosen)
        for index, item in enumerate(front)
        if (point := _point(item, key)) is not None
    ]
    others = [point for item in trials if item.flag("on_front") is not True and (point := _point(item, key))]
    if not best:
        best = [point for item in trials if item.flag("on_front") is True and (point := _point(item, key))]
    return sorted(best, key=lambda point: (point.kl, -point.rate)), others, key


def chosen_parameters(result: Record) -> Record:
    """The parameters of the point that was chosen; empty where it is not known."""
    chosen = _chosen(result)
    return Record({}) if chosen is None else result.items("front")[chosen].record("parameters")


def _point(item: Record, key: str) -> Point | None:
    """One point; None where it lacks its rate or its KL."""
    rate, kl = item.number("rate"), item.number(key)
    if rate is None or kl is None:
        return None
    return Point(
        rate=rate,
        kl=kl,
        first=item.number("kl_first"),
        sequence=item.number("kl_sequence"),
        parameters=(*_scores_in_words(item.record("scores")), *parameters_in_words(item.record("parameters"))),
        edit=item.text("edit") or "",
        screened=item.flag("screened") is True,
    )


def _scores_in_words(scores: Record) -> tuple[str, ...]:
    """Each score that the search traded in place of the rate or the KL."""
    return tuple(
        f"{key} {'not finite' if value is None else formats.plain(value)}" for key, value in scores.fields().items()
    )


def _chosen(result: Record) -> int | None:
    """Which item of the front was chosen: the one that says so, or whose file is the edit's."""
    front = result.items("front")
    for index, item in enumerate(front):
        if item.flag("chosen") is True:
            return index
    names = [_file(item.text("edit")) for item in front]
    file = _file(result.text("edit", "file"))
    for wanted, offered in ((file, names), (_last(file), [_last(name) for name in names])):
        if wanted and offered.count(wanted) == 1:
            return offered.index(wanted)
    return None


def _file(name: str | None) -> str:
    return (name or "").replace("\\", "/")


def _last(name: str) -> str:
    return name.rpartition("/")[2]
