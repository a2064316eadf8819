"""`eval.html`: several models by the same ruler, on one page, made from the content of `eval.json` alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from excise.report import formats, further, paired, subject
from excise.report.html import page
from excise.report.record import Record
from excise.report.table import Mark, Table

_STATISTICS = ("mean", "median", "p95", "max")


@dataclass(frozen=True)
class Part:
    """What the page says of one behavior."""

    title: str
    prompts: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def render(data: Record) -> str:
    """The page. Names of models are shown without the paths of this machine."""
    return page(
        "eval.html.j2",
        [],
        title=" and ".join(dict.fromkeys(names(data).values())),
        parts=[_part(data, name) for name in data.fields("behaviors")],
        version=data.text("versions", "excise"),
    )


def names(data: Record) -> dict[str, str]:
    """What each column of scores is called."""
    model = subject.model_name(data)
    found = {"model": model, "edited": f"{model}, edited"}
    if (against := data.text("against")) is not None:
        found["against"] = subject.model_name(Record({"model": against}))
    return {key: name for key, name in found.items() if key != "edited" or data.text("edit") is not None}


def _part(data: Record, name: str) -> Part:
    found, called = data.record("behaviors", name), names(data)
    keys = [key for key in called if found.at("scores", key) is not None]
    labels = {key: called[key] if list(called.values()).count(called[key]) == 1 else key for key in keys}
    columns = {labels[key]: found.record("scores", key) for key in keys}
    tables = [_scores(columns)]
    notes: list[str] = []
    for pair in found.items("comparisons"):
        first, second = (labels.get(pair.text(side) or "", "–") for side in ("first", "second"))
        tables += [
            paired.differences(pair, first, second),
            paired.kept(pair, first, second),
            _divergence(pair, first, second),
        ]
        notes += [note for note in paired.notes(Record({"comparison": pair.value})) if note not in notes]
    tables += [paired.looks(columns), paired.onsets(columns), *paired.strata(columns), *further.agreement(columns)]
    notes += paired.notes(Record({"seal": found.at("seal")}))
    pairs = found.pair("splits", found.text("split") or "report")
    prompts = "" if pairs is None else f"{pairs[0]:g} target and {pairs[1]:g} baseline prompts"
    return Part(name, prompts, tuple(table for table in tables if table is not None), tuple(notes))


def _scores(columns: Mapping[str, Record]) -> Table | None:
    """Every single number, one column for each model."""
    rows: list[tuple[str | Mark, ...]] = [("Behavior shown", *map(_rate, columns.values()))]
    for key in dict.fromkeys(key for scores in columns.values() for key in scores.fields("labels")):
        rows.append((f"Answers: {key}", *(further.plain(scores.number("labels", key)) for scores in columns.values())))
    rows.append(
        (
            "No answer: never stopped thinking",
            *(further.plain(s.number("unfinished_thinking")) for s in columns.values()),
        )
    )
    if any(scores.number("keep_rate") is not None for scores in columns.values()):
        rows.append(("Shown where it must stay", *(_rate(scores, "keep_") for scores in columns.values())))
    rows.append(("Shown on ordinary prompts", *(_rate(scores, "baseline_") for scores in columns.values())))
    for key, name in (("kl_first", "KL, first token"), ("kl_sequence", "KL, whole answer")):
        for statistic in _STATISTICS:
            cells = (formats.significant(scores.number(key, statistic)) for scores in columns.values())
            rows.append((f"{name}, {statistic}", *cells))
    rows.append(("Same first token", *(formats.percent(scores.number("top1")) for scores in columns.values())))
    rows.append(("Perplexity ratio", *(formats.significant(s.number("perplexity_ratio")) for s in columns.values())))
    rows += further.rows(columns)
    caption = "All scores; KL in nats, from the first model, on baseline prompts"
    return Table(caption, ("", *columns), tuple(rows), frozenset(range(1, len(columns) + 1))) if columns else None


def _divergence(pair: Record, first: str, second: str) -> Table | None:
    """The mean KL of the second model with its interval, and by how much it differs from the first's."""
    rows: list[tuple[str | Mark, ...]] = []
    for key, name in (("kl_first", "First token"), ("kl_sequence", "Whole answer, per token")):
        value = pair.number(key, "difference")
        if value is not None:
            cells = (
                further.between(pair.pair(f"{key}_interval")),
                formats.significant(value),
                further.between(pair.pair(key, "interval")),
            )
            rows.append((name, *cells))
    headers = ("KL", f"{second}: mean (95%)", f"More than {first}", "95%")
    caption = "Mean divergence, bootstrapped over prompts"
    return Table(caption, headers, tuple(rows), frozenset({1, 2, 3})) if rows else None


def _rate(scores: Record, prefix: str = "") -> str:
    return formats.rate(scores.number(f"{prefix}rate"), scores.pair(f"{prefix}rate_interval"))
