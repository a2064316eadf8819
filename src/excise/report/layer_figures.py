"""Figures over the layers: what the chosen edit changes, separability, cosines between the layers' directions."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from excise.report import edited, formats
from excise.report.figures import Figure, finish
from excise.report.palette import COLOURS, light, series
from excise.report.parameters import position_name
from excise.report.record import Record
from excise.report.table import Table

_BARS = 16  # layers up to which strengths are bars
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")


@dataclass(frozen=True)
class _Quantity:
    """What is drawn of the edit: its words, and how one value is written at the axis, over a point, in the table."""

    name: str
    title: str
    caption: str
    axis: str
    tick: str
    hover: str
    cell: str


_STRENGTH = _Quantity(
    name="Strength",
    title="How strongly each layer is edited",
    caption="1 takes the direction out of what a writer writes, 0 leaves it alone, −1 doubles that part; a writer "
    "of several experts shows the mean.",
    axis="Strength",
    tick="",
    hover=".3f",
    cell=".2f",
)
_SIZE = _Quantity(
    name="Size of the change",
    title="How much each layer is changed",
    caption="Size of the change as a share of the weight’s: ‖ΔW‖ / ‖W‖ in Frobenius norms, the mean where several "
    "writers of one role are in a layer; 0 leaves them alone. A low-rank change has no one strength: how much it does "
    "to a token depends on what the writer reads there.",
    axis="‖ΔW‖ / ‖W‖",
    tick=".2~%",
    hover=".2%",
    cell=".2%",
)


def strengths(result: Record) -> Figure | None:
    """Strength by layer and role of an edit that projects; of one with low-rank changes how large those are.

    None where the result holds neither: see `no_strengths`.
    """
    if not edited.has_low_rank(result):
        return _over_layers(edited.strengths(result), _STRENGTH)
    unknown = edited.unmeasured(result)
    missing = f" Not known, and not drawn: {formats.count(unknown, 'weight')}, packed (quantised) or offloaded."
    return _over_layers(edited.sizes(result), replace(_SIZE, caption=_SIZE.caption + missing) if unknown else _SIZE)


def no_strengths(result: Record) -> str:
    """What to say in place of the figure."""
    if edited.has_low_rank(result):
        return (
            "How much each layer is changed is not known: the weights are packed (quantised) or offloaded, and "
            "low-rank changes have no strength."
        )
    return "The strengths of the chosen edit were not recorded."


def _over_layers(by_role: edited.ByRole, quantity: _Quantity) -> Figure | None:
    if not by_role:
        return None
    layers = sorted({layer for values in by_role.values() for layer in values})
    figure = go.Figure()
    for index, (role, values) in enumerate(by_role.items()):
        colour = light(role) if role in COLOURS else series(index)
        x, y = list(values), [fmean(values[layer]) for layer in values]
        hover = [_spread(role, layer, values[layer], quantity.hover) for layer in values]
        if len(layers) <= _BARS or len(values) == 1:
            figure.add_bar(x=x, y=y, name=html.escape(role), marker={"color": colour}, hovertemplate=hover)
        else:
            marker = {"size": 5, "symbol": _SYMBOLS[index % len(_SYMBOLS)]}
            line = {"color": colour, "width": 2}
            figure.add_scatter(
                x=x, y=y, name=html.escape(role), mode="lines+markers", line=line, marker=marker, hovertemplate=hover
            )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(title=quantity.axis, rangemode="tozero", tickformat=quantity.tick)
    ticks, texts = _layer_ticks(layers)
    figure.update_xaxes(title="Layer", tickvals=ticks, ticktext=texts, showgrid=False)
    headers = ("Layer", *by_role)
    rows = tuple(
        (_layer_name(layer), *(_mean(values.get(layer), quantity.cell) for values in by_role.values()))
        for layer in layers
    )
    peaks = "; ".join(
        f"{role} up to {max(map(fmean, values.values())):{quantity.cell}}" for role, values in by_role.items()
    )
    return Figure(
        "strengths",
        quantity.title,
        quantity.caption,
        f"{quantity.name} by layer for {', '.join(by_role)}: {peaks}.",
        finish(figure, height=340),
        Table(f"{quantity.name} by layer and role", headers, rows, frozenset(range(1, len(headers)))),
        340,
    )


def separability(result: Record) -> Figure | None:
    """Held-out AUC and silhouette by layer, one line per token position; None where neither was recorded."""
    lines: dict[str, dict[int, tuple[float | None, float | None]]] = defaultdict(dict)
    for item in result.items("directions", "separability"):
        layer, position = item.number("layer"), item.text("position")
        auc, silhouette = item.number("auc"), item.number("silhouette")
        if layer is not None and position is not None and (auc is not None or silhouette is not None):
            lines[position][int(layer)] = (auc, silhouette)
    if not lines:
        return None
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07)
    for index, (position, values) in enumerate(lines.items()):
        layers = sorted(values)
        style = {
            "mode": "lines+markers",
            "line": {"color": series(index), "width": 2, "dash": _DASHES[index % len(_DASHES)]},
            "marker": {"size": 5, "symbol": _SYMBOLS[index % len(_SYMBOLS)]},
            "legendgroup": str(index),
            "name": html.escape(position_name(position)),
        }
        for row, what in enumerate(("AUC", "silhouette"), start=1):
            y = [values[layer][row - 1] for layer in layers]
            hover = f"layer %{{x}}, {what} %{{y:.3f}}"
            figure.add_scatter(x=layers, y=y, row=row, col=1, showlegend=row == 1, hovertemplate=hover, **style)
    every = sorted({layer for values in lines.values() for layer in values})
    best = result.number("directions", "best", "layer")
    if best is not None:
        line = {"color": light("miss"), "width": 1.5, "dash": "dot"}
        early = best <= every[len(every) // 2]
        figure.add_vline(x=best, line=line)
        figure.add_annotation(
            x=best, y=0.02, yref="y domain", text=f"best: layer {best:g}", showarrow=False, xshift=6 if early else -6,
            font={"color": light("miss")}, xanchor="left" if early else "right",
        )  # fmt: skip
    figure.update_yaxes(title="Held-out AUC", row=1, col=1)
    figure.update_yaxes(title="Silhouette", row=2, col=1)
    ticks, texts = _layer_ticks(every)
    figure.update_xaxes(tickvals=ticks, ticktext=texts)
    figure.update_xaxes(title="Layer", row=2, col=1)
    return Figure(
        "separability",
        "Where the two kinds of prompts part",
        "How well one direction tells target from ordinary prompts, by layer and token position. AUC: 1 is perfect, "
        "0.5 is chance. Silhouette: 1 is two tight clusters, 0 is none.",
        _separability_alt(result, lines),
        finish(figure, height=470),
        _separability_table(lines),
        470,
    )


def cosines(result: Record) -> Figure | None:
    """Cosine between the directions of each two layers; None where they were not recorded as a square matrix."""
    rows = [[value.number() for value in row.items()] for row in result.items("directions", "cosine")]
    if not rows or any(len(row) != len(rows) or None in row for row in rows):
        return None
    scale = [[0.0, light("scale-low")], [0.5, light("scale-middle")], [1.0, light("scale-high")]]
    figure = go.Figure(
        go.Heatmap(
            z=rows,
            zmin=-1,
            zmax=1,
            colorscale=scale,
            colorbar={
                "orientation": "h",
                "y": -0.16,
                "yanchor": "top",
                "thickness": 10,
                "outlinewidth": 0,
                "tickvals": [-1, -0.5, 0, 0.5, 1],
            },
            hovertemplate="layers %{y} and %{x}: %{z:.2f}<extra></extra>",
            xgap=1 if len(rows) <= 24 else 0,
            ygap=1 if len(rows) <= 24 else 0,
        )
    )
    ticks, texts = _layer_ticks(list(range(len(rows))))
    axis = {"title": "Layer", "tickvals": ticks, "ticktext": texts, "showgrid": False, "zeroline": False}
    figure.update_xaxes(constrain="domain", **axis)
    figure.update_yaxes(autorange="reversed", scaleanchor="x", constrain="domain", **axis)
    near = [row[index + 1] or 0.0 for index, row in enumerate(rows[:-1])]
    alt = f"Heat map of cosines between the directions of {formats.count(len(rows), 'layer')}."
    if near:
        alt += f" Neighbouring layers agree by {fmean(near):.2f} on average."
    return Figure(
        "cosines",
        "Do the layers agree on the direction?",
        "Cosine between the directions found at each two layers: 1 is the same direction, 0 is unrelated.",
        alt,
        finish(figure, height=440, legend=False),
        _cosine_table(rows, result.number("directions", "best", "layer")),
        440,
    )


def _spread(role: str, layer: int, values: Sequence[float], number: str) -> str:
    text = f"{html.escape(role)}, {_layer_name(layer)}: %{{y:{number}}}"
    if min(values) != max(values):
        text += f"<br>{len(values)} writers, {min(values):{number}} to {max(values):{number}}"
    return text + "<extra></extra>"


def _mean(values: Sequence[float] | None, number: str) -> str:
    return "–" if not values else f"{fmean(values):{number}}"


def _layer_name(layer: int) -> str:
    return "embedding" if layer < 0 else str(layer)


def _layer_ticks(layers: Sequence[int]) -> tuple[list[int], list[str]]:
    """At most about twelve ticks, on whole layers; the embedding always has one."""
    inner = [layer for layer in layers if layer >= 0]
    step = next((step for step in (1, 2, 4, 5, 8, 10, 20, 25, 50) if len(inner) <= 12 * step), 100)
    ticks = [layer for layer in layers if layer < 0][:1] + [layer for layer in inner if layer % step == 0]
    return ticks, ["emb." if layer < 0 else str(layer) for layer in ticks]


def _cosine_table(rows: Sequence[Sequence[float | None]], chosen: float | None) -> Table:
    """Cosines with the chosen layer's direction; of all layers where none was chosen."""
    if chosen is not None and 0 <= chosen < len(rows):
        row = tuple((str(layer), f"{value:.2f}") for layer, value in enumerate(rows[int(chosen)]) if value is not None)
        return Table(f"Cosine with the direction of layer {int(chosen)}", ("Layer", "Cosine"), row, frozenset({1}))
    headers = ("Layer", *(str(layer) for layer in range(len(rows))))
    cells = tuple(
        (str(layer), *(f"{value:.2f}" for value in row if value is not None)) for layer, row in enumerate(rows)
    )
    return Table("Cosine between the layers' directions", headers, cells, frozenset(range(1, len(headers))))


def _separability_alt(result: Record, lines: Mapping[str, Mapping[int, tuple[float | None, float | None]]]) -> str:
    scored = [
        (auc, layer, position)
        for position, values in lines.items()
        for layer, (auc, _) in values.items()
        if auc is not None
    ]
    text = f"Lines of AUC and silhouette by layer for {formats.count(len(lines), 'token position')}."
    if scored:
        auc, layer, position = max(scored)
        text += f" The highest AUC is {auc:.3f}, at layer {layer}, {position_name(position)}."
    best, where = result.number("directions", "best", "layer"), result.text("directions", "best", "position")
    if best is not None and where is not None:
        text += f" The best is layer {best:g}, {position_name(where)}."
    return text


def _separability_table(lines: Mapping[str, Mapping[int, tuple[float | None, float | None]]]) -> Table:
    rows = tuple(
        (position_name(position), str(layer), *("–" if value is None else f"{value:.3f}" for value in values[layer]))
        for position, values in lines.items()
        for layer in sorted(values)
    )
    return Table("Separability", ("Position", "Layer", "AUC", "Silhouette"), rows, frozenset({1, 2, 3}))
