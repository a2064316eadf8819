"""The figure of the search: what each edit costs, and what it buys. `Figure` is what every figure of the page is."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from excise.report import formats
from excise.report.palette import light
from excise.report.record import Record
from excise.report.table import Mark, Table

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_ROWS = 50


@dataclass(frozen=True)
class Figure:
    """One figure of the page.

    name    its id; `title` stands above it, `caption` says how to read it
    alt     what it shows, for those who cannot see it
    plot    plotly's JSON: `data` and `layout`
    table   the same numbers
    height  in pixels
    """

    name: str
    title: str
    caption: str
    alt: str
    plot: Mapping[str, Any]
    table: Table
    height: int = 380


def finish(figure: go.Figure, *, height: int = 380) -> dict[str, Any]:
    """The common looks of all figures, and plotly's JSON."""
    axis = {"gridcolor": light("grid"), "linecolor": light("line"), "zerolinecolor": light("line"), "automargin": True}
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 12, "r": 14, "t": 40, "b": 12},
        paper_bgcolor=light("card"),
        plot_bgcolor=light("card"),
        font={"family": FONT, "size": 13, "color": light("muted")},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": light("ink")}},
        hoverlabel={
            "bgcolor": light("card"),
            "bordercolor": light("line"),
            "font": {"family": FONT, "color": light("ink")},
            "align": "left",
        },
        hovermode="closest",
        dragmode=False,
    )
    figure.update_xaxes(ticks="", showline=False, **axis)
    figure.update_yaxes(ticks="", showline=False, **axis)
    plot = json.loads(figure.to_json())
    assert isinstance(plot, dict)
    return {"data": plot["data"], "layout": plot["layout"]}


@dataclass(frozen=True)
class _Point:
    """A trial or a point of the front."""

    rate: float
    kl: float
    parameters: tuple[tuple[str, str], ...]
    edit: str
    chosen: bool = False
    screened: bool = False

    def hover(self, kind: str) -> str:
        """The text of the box, safe to be read as HTML."""
        lines = [f"<b>{kind}</b>", f"behavior shown {formats.percent(self.rate)}", f"KL {formats.significant(self.kl)}"]
        lines += [f"{name} {value}" for name, value in self.parameters]
        head, *rest = lines
        return "<br>".join([head, *(html.escape(line) for line in rest)]) + "<extra></extra>"


def pareto(result: Record) -> Figure | None:
    """Rate against KL of every trial, the front and the chosen edit; None where no point has both numbers."""
    front = sorted(_points(result.items("front"), _chosen(result)), key=lambda point: (point.kl, -point.rate))
    trials = [
        point
        for item, point in _pairs(result.items("search", "points"))
        if item.flag("on_front") is not True and (point.rate, point.kl) not in {(one.rate, one.kl) for one in front}
    ]
    if not front:
        front = sorted((point for item, point in _pairs(result.items("search", "points")) if item.flag("on_front")),
                       key=lambda point: (point.kl, -point.rate))  # fmt: skip
    if not front and not trials:
        return None
    scale = _LogScale([point.kl for point in [*front, *trials]])
    figure = go.Figure()
    for name, symbol, group in (
        ("screened only", "circle-open", [point for point in trials if point.screened]),
        ("trial", "circle", [point for point in trials if not point.screened]),
    ):
        _scatter(figure, group, scale, name, {"color": light("faint"), "size": 6, "symbol": symbol, "opacity": 0.6})
    _scatter(
        figure, front, scale, "front", {"color": light("accent"), "size": 8}, line={"color": light("accent"), "width": 2}
    )
    chosen = [point for point in front if point.chosen]
    ring = {"color": light("card"), "size": 15, "line": {"color": light("miss"), "width": 3}}
    _scatter(figure, chosen, scale, "chosen edit", ring)
    before = result.number("before", "rate")
    if before is not None:
        figure.add_hline(
            y=before,
            line={"color": light("before"), "width": 1.5, "dash": "dot"},
            annotation={
                "text": f"before the edit, {formats.percent(before)}",
                "font": {"color": light("before")},
                "xanchor": "right",
                "yanchor": "bottom" if before < 0.9 else "top",
            },
        )
    figure.update_xaxes(
        title="KL divergence from the base model, first token (nats, log scale)",
        range=scale.range,
        tickvals=scale.ticks,
        ticktext=scale.texts,
    )
    highest = max([before or 0.0, *(point.rate for point in [*front, *trials])])
    top = min(1.0, max(0.1, highest)) * 1.06
    figure.update_yaxes(title="Behavior shown", tickformat=".0%", range=[-0.04 * top, top])
    return Figure(
        "pareto",
        "What each edit costs, and what it buys",
        "Each dot is an edit that was tried; lower is less of the behavior, further left is less change elsewhere. "
        "The line joins the edits that no other one beats at both. These are the figures of the search, on other "
        "prompts than the scores above.",
        _alt(front, trials, chosen),
        finish(figure, height=420),
        _table(front),
        420,
    )


class _LogScale:
    """A logarithmic axis on which zeros have a place of their own at the left end."""

    def __init__(self, values: Sequence[float]) -> None:
        positive = [value for value in values if value > 0] or [1e-3]
        low, high = min(positive), max(positive)
        self.zero = low / 3 if any(value <= 0 for value in values) else None
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        step = max(1, math.ceil((last - first + 1) / 8))
        inner = [(factor, power) for power in range(first - 1, last + 1, step) for factor in (1, 2, 5)]
        dense = last - first <= 2
        ticks = [factor * 10.0**power for factor, power in inner if factor == 1 or dense]
        margin = max((math.log10(high) - math.log10(low)) * 0.05, 0.15)
        left = math.log10(self.zero or low)
        self.range = [left - margin, math.log10(high) + margin]
        self.ticks = [tick for tick in ticks if low / 1.9 <= tick <= high * 10**margin]
        self.texts = [f"{tick:g}" for tick in self.ticks]
        if self.zero is not None:
            self.ticks, self.texts = [self.zero, *self.ticks], ["0", *self.texts]

    def place(self, value: float) -> float:
        """Where a value is drawn."""
        return self.zero if value <= 0 and self.zero is not None else value


def _scatter(
    figure: go.Figure,
    points: Sequence[_Point],
    scale: _LogScale,
    name: str,
    marker: Mapping[str, Any],
    line: Mapping[str, Any] | None = None,
) -> None:
    if not points:
        return
    figure.add_scatter(
        x=[scale.place(point.kl) for point in points],
        y=[point.rate for point in points],
        mode="markers" if line is None else "lines+markers",
        line=None if line is None else {**line, "shape": "hv"},
        marker=marker,
        name=name,
        hovertemplate=[point.hover(name) for point in points],
    )
    figure.update_xaxes(type="log")


def _pairs(items: Sequence[Record]) -> list[tuple[Record, _Point]]:
    """The items that have both numbers, with their points."""
    found = []
    for item in items:
        rate, kl = item.number("rate"), item.number("kl_first")
        if rate is None or kl is None:
            continue
        parameters = tuple((name, formats.plain(value)) for name, value in item.fields("parameters").items())
        edit = item.text("edit") or ""
        found.append((item, _Point(rate, kl, parameters, edit, screened=item.flag("screened") is True)))
    return found


def _points(items: Sequence[Record], chosen: int | None) -> list[_Point]:
    """The points of the front, with the chosen one marked."""
    return [
        _Point(point.rate, point.kl, point.parameters, point.edit, chosen is not None and item is items[chosen])
        for item, point in _pairs(items)
    ]


def _chosen(result: Record) -> int | None:
    """Which item of the front was chosen: the one that says so, or whose file is the edit's."""
    front = result.items("front")
    for index, item in enumerate(front):
        if item.flag("chosen") is True:
            return index
    file = result.text("edit", "file")
    named = [(item.text("edit") or "").replace("\\", "/") for item in front]
    if file is not None:
        file = file.replace("\\", "/")
        for matches in (
            [index for index, name in enumerate(named) if name == file],
            [index for index, name in enumerate(named) if name and name.rpartition("/")[2] == file.rpartition("/")[2]],
        ):
            if len(matches) == 1:
                return matches[0]
    return None


def _table(front: Sequence[_Point]) -> Table:
    rows: list[tuple[str | Mark, ...]] = []
    for point in front[:_ROWS]:
        parameters = ", ".join(f"{name} {value}" for name, value in point.parameters) or "–"
        name = (point.edit.rpartition("/")[2] or "–") + (" (chosen)" if point.chosen else "")
        rows.append((name, formats.percent(point.rate), formats.significant(point.kl), parameters))
    headers = ("Edit", "Behavior shown", "KL, first token", "Parameters")
    more = f" (the first {_ROWS} of {len(front)})" if len(front) > _ROWS else ""
    return Table(f"The front{more}", headers, tuple(rows), frozenset({1, 2}))


def _alt(front: Sequence[_Point], trials: Sequence[_Point], chosen: Sequence[_Point]) -> str:
    text = f"Scatter plot of {formats.count(len(front) + len(trials), 'edit')}, {len(front)} of them on the front."
    for point in chosen:
        text += f" The chosen one shows the behavior in {formats.percent(point.rate)} at KL {formats.significant(point.kl)}."
    return text
