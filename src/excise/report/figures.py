"""The figure of the search: what each edit costs, and what it buys. `Figure` is what every figure of the page is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from excise.report import formats
from excise.report.palette import light
from excise.report.points import KL_NAMES, Point, read_points
from excise.report.record import Record
from excise.report.subject import strengthens
from excise.report.table import Mark, Table

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_ROWS = 50
_NOISE, _CAP = 1e-9, 1e6  # KL below is drawn as zero, above at the edge


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
    height: int


def finish(figure: go.Figure, *, height: int, legend: bool = True) -> dict[str, Any]:
    """The common looks of all figures, and plotly's JSON. `legend`: whether there is one above the plot."""
    axis = {
        "gridcolor": light("grid"),
        "linecolor": light("line"),
        "zerolinecolor": light("line"),
        "automargin": True,
        "title_font_size": 13,
        "title_standoff": 10,
    }
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 12, "r": 14, "t": 40 if legend else 12, "b": 12},
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
    figure.update_xaxes(ticks="", showline=False, zeroline=False, **axis)
    figure.update_yaxes(ticks="", showline=False, **axis)
    plot = json.loads(figure.to_json())
    assert isinstance(plot, dict)
    return {"data": plot["data"], "layout": plot["layout"]}


def pareto(result: Record) -> Figure | None:
    """Rate against KL of every trial, the front and the chosen edit; None where no point has both numbers."""
    front, trials, key = read_points(result)
    if not front and not trials:
        return None
    scale = _LogScale([point.kl for point in [*front, *trials]])
    figure = go.Figure()
    for name, symbol, group in (
        ("screened only", "circle-open", [point for point in trials if point.screened]),
        ("trial", "circle", [point for point in trials if not point.screened]),
    ):
        _scatter(figure, group, scale, name, {"color": light("faint"), "size": 7, "symbol": symbol, "opacity": 0.6})
    accent = light("accent")
    _scatter(figure, front, scale, "front", {"color": accent, "size": 8}, line={"color": accent, "width": 2})
    chosen = [point for point in front if point.chosen]
    ring = {"color": light("card"), "size": 15, "line": {"color": light("miss"), "width": 3}}
    _scatter(figure, chosen, scale, "chosen edit", ring)
    _axes(figure, scale, [point.rate for point in [*front, *trials]], result.number("before", "rate"))
    figure.update_xaxes(title=f"{KL_NAMES[key]} from the base model (nats)")
    return Figure(
        "pareto",
        "What each edit costs, and what it buys",
        ("Higher is more" if strengthens(result) else "Lower is less")
        + " of the behavior, further left (on a log scale) is less change elsewhere. Faint: the trials, as "
        "the search scored them. Line: the best of them, measured again on other prompts, so that a trial may lie "
        "beyond it. The scores above are on a third set of prompts." + _reason(result),
        _alt(front, trials, chosen),
        finish(figure, height=420),
        _table(front),
        420,
    )


def _reason(result: Record) -> str:
    """Why the chosen edit was chosen, as the search says it."""
    reason = result.text("search", "reason")
    drawn = (("rate", result.text("search", "rate_by")), ("KL", result.text("search", "damage_by")))
    keys = [f"{name} '{key}'" for name, key in drawn if key]
    instead = f" The search traded other scores than are drawn here (for the {' and the '.join(keys)})." if keys else ""
    return instead + (f" Chosen: {reason}." if reason else "")


class _LogScale:
    """A logarithmic axis on which zeros have a place of their own at the left end."""

    def __init__(self, values: Sequence[float]) -> None:
        positive = [min(value, _CAP) for value in values if value > _NOISE] or [1e-3]
        low, high = min(positive), max(positive)
        self.zero = low / 3 if any(value <= _NOISE for value in values) else None
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
        return self.zero if value <= _NOISE and self.zero is not None else min(value, _CAP)


def _axes(figure: go.Figure, scale: _LogScale, rates: Sequence[float], before: float | None) -> None:
    """The axes, and a line at the rate before the edit."""
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
        range=scale.range,
        tickvals=scale.ticks,
        ticktext=scale.texts,
    )
    highest = max([before or 0.0, *rates])
    top = min(1.0, max(0.1, highest)) * 1.06
    figure.update_yaxes(title="Behavior shown", tickformat=".0%", range=[-0.04 * top, top])


def _scatter(
    figure: go.Figure,
    points: Sequence[Point],
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


def _table(front: Sequence[Point]) -> Table:
    rows: list[tuple[str | Mark, ...]] = []
    for point in front[:_ROWS]:
        parameters = ", ".join(point.parameters) or "–"
        name = (point.edit.rpartition("/")[2] or "–") + (" (chosen)" if point.chosen else "")
        costs = [("–" if value is None else formats.significant(value)) for value in (point.first, point.sequence)]
        rows.append((name, formats.percent(point.rate), *costs, parameters))
    headers = ("Edit", "Behavior shown", "KL, first token", "KL, sequence", "Parameters")
    more = f" (the first {_ROWS} of {len(front)})" if len(front) > _ROWS else ""
    return Table(f"The front{more}", headers, tuple(rows), frozenset({1, 2, 3}))


def _alt(front: Sequence[Point], trials: Sequence[Point], chosen: Sequence[Point]) -> str:
    text = f"Scatter plot of {formats.count(len(front) + len(trials), 'edit')}, {len(front)} of them on the front."
    for point in chosen:
        rate, kl = formats.percent(point.rate), formats.significant(point.kl)
        text += f" The chosen one shows the behavior in {rate} at KL {kl}."
    return text
