"""What scorers found that were asked for: their numbers by key, and how far labellers agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from excise.report import formats
from excise.report.record import Record
from excise.report.table import Mark, Table

_KNOWN = {
    *("split", "rate", "rate_interval", "labels", "kl_first", "kl_sequence", "top1", "perplexity_ratio", "positions"),
    *("baseline_rate", "baseline_rate_interval", "baseline_labels"),
    *("unfinished_thinking", "baseline_unfinished_thinking"),
    *("keep_rate", "keep_rate_interval", "keep_labels", "keep_unfinished_thinking", "strata"),
}


def numbers(columns: Mapping[str, Record]) -> Table | None:
    """What scorers returned that were asked for; None where none was."""
    found = rows(columns)
    caption = "Further scorers (docs/scorers.md)"
    return Table(caption, ("", *columns), tuple(found), frozenset(range(1, len(columns) + 1))) if found else None


def rows(columns: Mapping[str, Record]) -> list[tuple[str | Mark, ...]]:
    """A row for each number, one column for each model."""
    paths = dict.fromkeys(path for scores in columns.values() for path in _numbers(scores))
    return [(".".join(path), *(plain(scores.number(*path)) for scores in columns.values())) for path in paths]


def agreement(columns: Mapping[str, Record]) -> Iterator[Table]:
    """Cohen's kappa between labellers, where a scorer tells: `NAME.kappa.OTHER`."""
    for model, scores in columns.items():
        asked = [name for name in scores.fields() if scores.fields(name, "kappa")]
        rows: list[tuple[str | Mark, ...]] = []
        for one, other in combinations(asked, 2):
            kappa = scores.number(one, "kappa", other, "kappa")
            bounds = between(scores.pair(one, "kappa", other, "interval"))
            rows.append((f"{one}, {other}", formats.significant(kappa), bounds))
        if rows:
            caption = f"Agreement of labellers on {model}: Cohen’s kappa"
            yield Table(caption, ("Labellers", "Kappa", "95%"), tuple(rows), frozenset({1, 2}))


def _numbers(scores: Record, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all numbers that further scorers returned."""
    for key in scores.fields():
        if (before or key not in _KNOWN) and key != "kappa":
            path = (*before, key)
            if scores.number(key) is not None:
                yield path
            yield from _numbers(scores.record(key), path)


def plain(value: float | None) -> str:
    """A number as it is read; a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"


def between(bounds: tuple[float, float] | None) -> str:
    """Both bounds; a dash where there are none."""
    return "–" if bounds is None else f"{formats.significant(bounds[0])} to {formats.significant(bounds[1])}"
