"""`eval.html`: several models by the same ruler, on one page, made from the content of `eval.json` alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from excise.report import formats, paired, subject
from excise.report.html import page
from excise.report.record import Record
from excise.report.table import Mark, Table

_STATISTICS = ("mean", "median", "p95", "max")
_KNOWN = {
    *("split", "rate", "rate_interval", "labels", "kl_first", "kl_sequence", "top1", "perplexity_ratio", "positions"),
    *("baseline_rate", "baseline_rate_interval", "baseline_labels"),
    *("unfinished_thinking", "baseline_unfinished_thinking"),
    *("keep_rate", "keep_rate_interval", "keep_labels", "keep_unfinished_thinking", "strata"),
}


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
    tables += [paired.looks(columns), paired.onsets(columns), *paired.strata(columns), *_agreement(columns)]
    notes += paired.notes(Record({"seal": found.at("seal")}))
    pairs = found.pair("splits", found.text("split") or "report")
    prompts = "" if pairs is None else f"{pairs[0]:g} target and {pairs[1]:g} baseline prompts"
    return Part(name, prompts, tuple(table for table in tables if table is not None), tuple(notes))


def _scores(columns: Mapping[str, Record]) -> Table | None:
    """Every single number, one column for each model."""
    rows: list[tuple[str | Mark, ...]] = [("Behavior shown", *map(_rate, columns.values()))]
    for key in dict.fromkeys(key for scores in columns.values() for key in scores.fields("labels")):
        rows.append((f"Answers: {key}", *(_plain(scores.number("labels", key)) for scores in columns.values())))
    rows.append(
        ("No answer: never stopped thinking", *(_plain(s.number("unfinished_thinking")) for s in columns.values()))
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
    others = dict.fromkeys(path for scores in columns.values() for path in _numbers(scores))
    rows += [(".".join(path), *(_plain(scores.number(*path)) for scores in columns.values())) for path in others]
    caption = "All scores; KL in nats, from the first model, on baseline prompts"
    return Table(caption, ("", *columns), tuple(rows), frozenset(range(1, len(columns) + 1))) if columns else None


def _divergence(pair: Record, first: str, second: str) -> Table | None:
    """The mean KL of the second model with its interval, and by how much it differs from the first's."""
    rows: list[tuple[str | Mark, ...]] = []
    for key, name in (("kl_first", "First token"), ("kl_sequence", "Whole answer, per token")):
        value = pair.number(key, "difference")
        if value is not None:
            cells = (
                _between(pair.pair(f"{key}_interval")),
                formats.significant(value),
                _between(pair.pair(key, "interval")),
            )
            rows.append((name, *cells))
    headers = ("KL", f"{second}: mean (95%)", f"More than {first}", "95%")
    caption = "Mean divergence, bootstrapped over prompts"
    return Table(caption, headers, tuple(rows), frozenset({1, 2, 3})) if rows else None


def _agreement(columns: Mapping[str, Record]) -> Iterator[Table]:
    """Cohen's kappa between labellers, where a scorer tells: `NAME.kappa.OTHER`."""
    for model, scores in columns.items():
        asked = [name for name in scores.fields() if scores.fields(name, "kappa")]
        rows: list[tuple[str | Mark, ...]] = []
        for one, other in combinations(asked, 2):
            kappa = scores.number(one, "kappa", other, "kappa")
            bounds = _between(scores.pair(one, "kappa", other, "interval"))
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


def _between(bounds: tuple[float, float] | None) -> str:
    return "–" if bounds is None else f"{formats.significant(bounds[0])} to {formats.significant(bounds[1])}"


def _rate(scores: Record, prefix: str = "") -> str:
    return formats.rate(scores.number(f"{prefix}rate"), scores.pair(f"{prefix}rate_interval"))


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
