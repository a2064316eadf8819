"""Tables of two models on the same prompts: what differs, whether by chance, and where in the answers it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from excise.report import formats
from excise.report.record import Record
from excise.report.table import Mark, Table

Row = tuple[str | Mark, ...]
MOST_STRATA = 30
_SIDES = {"": "target", "keep_": "must stay", "baseline_": "ordinary"}


def differences(compared: Record, first: str = "Before", second: str = "After") -> Table | None:
    """Base against edited by each labeller: the difference with its interval, McNemar's test, Holm's correction."""
    rows: list[Row] = []
    for name in compared.fields("labellers"):
        each = compared.record("labellers", name)
        bounds = each.pair("interval")
        rows.append(
            (
                name,
                formats.percent(each.number("first_rate")),
                formats.percent(each.number("second_rate")),
                points(each.number("difference"), bounds),
                f"{_count(each.number('only_first'))} / {_count(each.number('only_second'))}",
                probability(each.number("p_exact")),
                probability(each.number("p_mid")),
                probability(each.number("p_holm")),
            )
        )
    if not rows:
        return None
    headers = ("Labelled by", first, second, "Difference (95%)", "Shown by one only", "p", "mid-p", "p (Holm)")
    caption = "The behavior on the same prompts: paired difference, and McNemar’s test of it"
    return Table(caption, headers, tuple(rows), frozenset(range(1, 8)))


def kept(compared: Record, first: str = "Before", second: str = "After") -> Table | None:
    """The same on prompts where the behavior must stay; None where there are none."""
    found = differences(compared.record("keep"), first, second)
    return None if found is None else replace(found, caption="The same on prompts where the behavior must stay")


def strata(columns: Mapping[str, Record]) -> tuple[Table, ...]:
    """The rate by category and by language of prompts where they have any; on baseline prompts the last model's KL."""
    return tuple(table for by in ("category", "language") if (table := _strata(columns, by)) is not None)


def _strata(columns: Mapping[str, Record], by: str) -> Table | None:
    names = dict.fromkeys(name for scores in columns.values() for name in scores.fields("strata", by))
    counts = {(side, name): _most(columns, by, name, f"{side}count") for side in _SIDES for name in sorted(names)}
    groups = [group for group in counts if counts[group]]
    shown = sorted(groups, key=lambda group: -counts[group])[:MOST_STRATA]
    rows: list[Row] = []
    for side, name in sorted(shown, key=groups.index):
        each = [scores.record("strata", by, name) for scores in columns.values()]
        cells = [formats.rate(one.number(f"{side}rate"), one.pair(f"{side}rate_interval")) for one in each]
        kl = "–"
        if side == "baseline_":
            cells, kl = ["–"] * len(each), formats.significant(each[-1].number("kl_first", "mean"))
        rows.append((f"{name} ({_SIDES[side]})", f"{counts[side, name]:,.0f}", *cells, kl))
    if not rows:
        return None
    more = f", the {len(rows)} largest of {len(groups)} groups" if len(groups) > len(rows) else ""
    headers = (by.capitalize(), "Prompts", *columns, "KL, first token")
    return Table(f"The behavior by {by} of prompts{more}", headers, tuple(rows), frozenset(range(1, len(headers))))


def _most(columns: Mapping[str, Record], by: str, name: str, field: str) -> float:
    return max((scores.number("strata", by, name, field) or 0.0 for scores in columns.values()), default=0.0)


def looks(columns: Mapping[str, Record]) -> Table | None:
    """The rate by how many tokens of an answer are looked at, all counted on the same responses."""
    given = [look for scores in columns.values() for look in scores.fields("positions", "rate_by_tokens")]
    found = {int(look) for look in given if look.isascii() and look.isdigit()}
    rows: list[Row] = []
    for look in sorted(found):
        cells = []
        for scores in columns.values():
            rate = scores.record("positions", "rate_by_tokens", str(look))
            cells.append(formats.rate(rate.number("rate"), rate.pair("rate_interval")))
        rows.append((f"{look} tokens", *cells))
    if not rows:
        return None
    caption = "The rate by how much of each answer is looked at: others’ figures often stop at 30 to 100 tokens"
    return Table(caption, ("Looked at", *columns), tuple(rows), frozenset(range(1, len(columns) + 1)))


def onsets(columns: Mapping[str, Record]) -> Table | None:
    """At which token of the answer the behavior begins, in how many responses, and how many are late."""
    ranges: dict[str, list[str]] = {}
    for index, scores in enumerate(columns.values()):
        for row in scores.items("positions", "histogram"):
            low, high, count = ([*row.items(), Record(None)] * 3)[:3]
            start, end = low.number(), high.number()
            if start is not None:
                name = f"token {start:g} and later" if end is None else f"tokens {start:g} to {end - 1:g}"
                ranges.setdefault(name, ["–"] * len(columns))[index] = _count(count.number())
    if not ranges:
        return None
    rows: list[Row] = [(name, *cells) for name, cells in ranges.items()]
    delayed = [_count(scores.number("positions", "delayed")) for scores in columns.values()]
    rows.append(("Delayed: first after token 50", *delayed))
    caption = "Where in the answer the behavior begins, in responses"
    return Table(caption, ("Begins at", *columns), tuple(rows), frozenset(range(1, len(columns) + 1)))


def draws(random: Record) -> Table | None:
    """Every random direction that was tried, and on how many prompts; None where there was one at most."""
    rows: list[Row] = []
    for draw in random.items("draws"):
        prompts = draw.pair("prompts")
        rows.append(
            (
                f"seed {_count(draw.number('seed'))}",
                "–" if prompts is None else f"{prompts[0]:g} and {prompts[1]:g}",
                formats.rate(draw.number("rate"), draw.pair("rate_interval")),
                formats.significant(draw.number("kl_first")),
            )
        )
    if len(rows) < 2:
        return None
    headers = ("Random direction", "Prompts", "Behavior shown", "KL, first token")
    return Table("Random directions: how much chance alone differs", headers, tuple(rows), frozenset({1, 2, 3}))


def notes(result: Record) -> tuple[str, ...]:
    """What the sample cannot tell, and how often it was looked at, in sentences."""
    said = []
    if (note := result.text("comparison", "keep", "note")) is not None:
        said.append(f"{note[:1].upper()}{note[1:]}.")
    for name in result.fields("comparison", "labellers"):
        note = result.text("comparison", "labellers", name, "power", "note")
        if note is not None:
            said.append(f"{note[:1].upper()}{note[1:]}.")
            break
    seal = result.text("seal", "note")
    return (*said, *([] if seal is None else [f"{seal[:1].upper()}{seal[1:]}."]))


def points(value: float | None, bounds: tuple[float, float] | None) -> str:
    """A difference of rates in percentage points, with its interval."""
    if value is None:
        return formats.NOT_MEASURED
    text = f"{100 * value:+.1f}"
    if bounds is not None:
        text += f" ({100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f})"
    return f"{text} points".replace("-", "−")


def probability(value: float | None) -> str:
    """A p-value with two digits; tiny ones as a bound."""
    if value is None:
        return formats.NOT_MEASURED
    return "<0.0001" if value < 1e-4 else f"{value:.2g}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
