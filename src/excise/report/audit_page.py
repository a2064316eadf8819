"""`audit.html`: what losing a behavior costs one model, or two side by side, from the content of `audit.json` alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from excise.report import formats
from excise.report.figures import Figure, finish
from excise.report.html import page
from excise.report.palette import light, series
from excise.report.record import Record
from excise.report.subject import model_name
from excise.report.table import Table
from excise.runs import write_json, writing

_ALONE = {"role": "One direction out of one kind of writer", "layers": "One direction out of some layers"}
_DASHES = ("solid", "dash")
Audited = Mapping[str, Any]


def write_audit(audit: Mapping[str, Any], directory: Path) -> tuple[Path, Path]:
    """Write `audit.json` and `audit.html`, each whole or not at all; gives their paths. Both hold no prompts and no
    responses.

    audit  `behavior`, `models` (by name, what `Audit.to_json` gives), `comparison` (what `compare` gives, or None)

    Raises `DiskFullError` when the disk is full.
    """
    written = directory / "audit.json", directory / "audit.html"
    directory.mkdir(parents=True, exist_ok=True)
    write_json(written[0], dict(audit))
    with writing(written[1]) as scratch:
        scratch.write_text(render(json.loads(json.dumps(audit))), encoding="utf-8")
    return written


def render(audit: Mapping[str, Any]) -> str:
    """The page."""
    models: dict[str, Audited] = {_short(name): found for name, found in audit["models"].items()}
    comparison = audit.get("comparison")
    return page(
        "audit.html.j2",
        [_prices(models), _layers(models)],
        behavior=audit["behavior"],
        lead=_lead(models),
        summary=_summary(models),
        verdict=f"{comparison['verdict']}." if comparison else "",
        tables=[_alone(name, found, group) for name, found in models.items() for group in _ALONE],
    )


def _short(name: str) -> str:
    return model_name(Record({"model": name}))


def _lead(models: Mapping[str, Audited]) -> str:
    parts = [
        f"{name} loses half of it at {_nats(found['robustness'])}"
        + (f", and nine tenths with {formats.count(found['rank_needed'], 'direction')}" if found["rank_needed"] else "")
        for name, found in models.items()
    ]
    return "; ".join(parts) + "."


def _summary(models: Mapping[str, Audited]) -> Table:
    rows: dict[str, list[str]] = {
        "Behavior shown": [formats.rate(each["rate"], tuple(each["rate_interval"])) for each in models.values()],
        "Robustness (half)": [_nats(each["robustness"]) for each in models.values()],
        "95% interval": [" to ".join(map(_nats, each["robustness_interval"])) for each in models.values()],
        "Robustness (nine tenths)": [_nats(each["robustness_90"]) for each in models.values()],
        "Concentration": [formats.percent(each["concentration"]) for each in models.values()],
        "Rank needed for nine tenths": [str(each["rank_needed"] or "none tried") for each in models.values()],
        "Target prompts": [str(each["prompts"]) for each in models.values()],
    }
    table = tuple((name, *cells) for name, cells in rows.items())
    return Table("Scores", ("", *models), table, frozenset(range(1, len(models) + 1)))


def _prices(models: Mapping[str, Audited]) -> Figure:
    figure, rows = go.Figure(), []
    for index, (name, found) in enumerate(models.items()):
        for group, dash in zip(("strength", "rank"), _DASHES, strict=True):
            points = _curve(found, group)
            figure.add_scatter(
                x=[each["kl_first"] for each in points],
                y=[each["removed"] for each in points],
                mode="lines+markers",
                line={"color": series(index), "width": 2, "dash": dash},
                name=f"{name}, by {group}",
                hovertemplate=[f"{group} {each['label']}<br>%{{y:.1%}} at KL %{{x:.3g}}" for each in points],
            )
            rows += [_row(f"{name}, {group} {each['label']}", each) for each in points]
    figure.add_hline(y=0.5, line={"color": light("before"), "width": 1.5, "dash": "dot"})
    figure.update_xaxes(title="KL of the first token from the base model (nats)", rangemode="tozero")
    figure.update_yaxes(title="Behavior removed", tickformat=".0%")
    return Figure(
        "prices",
        "What is removed, and what it costs",
        "Higher is more of the behavior removed, further left is less change elsewhere. Dotted: half of it is gone.",
        "; ".join(f"{name} loses half at {_nats(found['robustness'])}" for name, found in models.items()),
        finish(figure, height=420),
        _table("Edits of all layers", rows),
        420,
    )


def _layers(models: Mapping[str, Audited]) -> Figure:
    figure, rows = go.Figure(), []
    for index, (name, found) in enumerate(models.items()):
        points = [each for each in found["points"] if each["group"] == "layer"]
        figure.add_bar(
            x=[int(each["label"]) for each in points],
            y=[each["removed"] for each in points],
            marker={"color": series(index)},
            name=name,
            hovertemplate=[f"layer {each['label']}<br>%{{y:.1%}} removed" for each in points],
        )
        rows += [_row(f"{name}, layer {each['label']}", each) for each in points]
    figure.update_layout(barmode="group", showlegend=len(models) > 1)
    figure.update_xaxes(title="Layer")
    figure.update_yaxes(title="Removed, estimated", tickformat=".0%")
    return Figure(
        "layers",
        "One layer at a time",
        "The direction taken out of the writers of a single layer at strength 1. Estimated by prefill, from how likely "
        "the first tokens of the behavior still are.",
        "Bars of the share of the behavior that goes with each layer.",
        finish(figure, height=320, legend=len(models) > 1),
        _table("Edits of one layer (rates estimated)", rows),
        320,
    )


def _curve(found: Audited, group: str) -> list[Mapping[str, Any]]:
    """In the order of strength; or of rank, rank 1 being the first direction at strength 1."""
    points = [each for each in found["points"] if each["group"] == group]
    if group == "rank":
        points += [each for each in found["points"] if each["group"] == "strength" and each["strength"] == 1.0]
        return sorted(points, key=lambda each: float(each["rank"]))
    return sorted(points, key=lambda each: float(each["strength"]))


def _alone(name: str, found: Audited, group: str) -> Table:
    rows = [_row(each["label"], each) for each in found["points"] if each["group"] == group]
    return _table(f"{name}: {_ALONE[group].lower()}", rows)


def _row(label: str, point: Mapping[str, Any]) -> tuple[str, ...]:
    bounds = point["rate_interval"]
    shown = formats.rate(point["rate"], tuple(bounds) if bounds else None)
    kls = formats.significant(point["kl_first"]), formats.significant(point["kl_sequence"])
    return (label, shown, formats.percent(max(0.0, point["removed"])), *kls)


def _table(caption: str, rows: Sequence[tuple[str, ...]]) -> Table:
    headers = ("", "Still shown", "Removed", "KL, first token", "KL, sequence")
    return Table(caption, headers, tuple(rows), frozenset(range(1, len(headers))))


def _nats(value: float | None) -> str:
    return "more than any edit tried" if value is None else f"{formats.significant(value)} nats"
