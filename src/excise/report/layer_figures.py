"""Figures over the layers: strengths of the chosen edit, separability, and cosines between the layers' directions."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from excise.report import formats
from excise.report.figures import Figure, finish
from excise.report.palette import COLOURS, light, series
from excise.report.proof import ROLES
from excise.report.record import Record
from excise.report.table import Table

_BARS = 16  # layers up to which strengths are bars
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
_POSITIONS = {"response": "mean over the response"}


def strengths(result: Record) -> Figure | None:
    """Strength by layer and role of the chosen edit; None where its sites are not in the result."""
    by_role = _strengths(result)
    if not by_role:
        return None
    layers = sorted({layer for values in by_role.values() for layer in values})
    figure = go.Figure()
    for index, (role, values) in enumerate(by_role.items()):
        colour = light(role) if role in COLOURS else series(index)
        x, y = list(values), [fmean(values[layer]) for layer in values]
        hover = [_spread(role, layer, values[layer]) for layer in values]
        if len(layers) <= _BARS or len(values) == 1:
            figure.add_bar(x=x, y=y, name=html.escape(role), marker={"color": colour}, hovertemplate=hover)
        else:
            marker = {"size": 5, "symbol": _SYMBOLS[index % len(_SYMBOLS)]}
            line = {"color": colour, "width": 2}
            figure.add_scatter(
                x=x, y=y, name=html.escape(role), mode="lines+markers", line=line, marker=marker, hovertemplate=hover
            )
    figure.update_layout(barmode="group", bargap=0.25)
    figure.update_yaxes(title="Strength", rangemode="tozero")
    ticks, texts = _layer_ticks(layers)
    figure.update_xaxes(title="Layer", tickvals=ticks, ticktext=texts, showgrid=False)
    headers = ("Layer", *by_role)
    rows = tuple((_layer_name(layer), *(_mean(values.get(layer)) for values in by_role.values())) for layer in layers)
    peaks = "; ".join(f"{role} up to {max(map(fmean, values.values())):.2f}" for role, values in by_role.items())
    return Figure(
        "strengths",
        "How strongly each layer is edited",
        "1 takes the direction out of what a writer writes, 0 leaves it alone; a writer of several experts shows the "
        "mean.",
        f"Strength by layer for {', '.join(by_role)}: {peaks}.",
        finish(figure, height=340),
        Table("Strength by layer and role", headers, rows, frozenset(range(1, len(headers)))),
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


def position_name(position: str) -> str:
    """A token position in words."""
    if position in _POSITIONS:
        return _POSITIONS[position]
    if position.startswith("+") and position[1:].isdigit():
        return "first response token" if position == "+1" else f"response token {position[1:]}"
    if position.startswith("-") and position[1:].isdigit():
        return "last prompt token" if position == "-1" else f"prompt token {position}"
    return position


def _strengths(result: Record) -> dict[str, dict[int, list[float]]]:
    """role -> layer -> strengths; writers of an edited role that the edit leaves out count as 0."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    edited = set()
    for site in result.items("edit", "sites"):
        layer, strength = site.number("layer"), site.number("strength")
        if layer is not None and strength is not None:
            found[site.text("role") or "unknown"][int(layer)].append(strength)
            edited.add(site.text("parameter"))
    for writer in result.items("survey", "writers"):
        role, layer = writer.text("role"), writer.number("layer")
        if role in found and layer is not None and writer.text("parameter") not in edited:
            found[role][int(layer)].append(0.0)
    order = sorted(found, key=lambda role: ROLES.index(role) if role in ROLES else len(ROLES))
    return {role: {layer: found[role][layer] for layer in sorted(found[role])} for role in order}


def _spread(role: str, layer: int, values: Sequence[float]) -> str:
    text = f"{html.escape(role)}, {_layer_name(layer)}: %{{y:.3f}}"
    if min(values) != max(values):
        text += f"<br>{len(values)} writers, {min(values):.3f} to {max(values):.3f}"
    return text + "<extra></extra>"


def _mean(values: Sequence[float] | None) -> str:
    return "–" if not values else f"{fmean(values):.2f}"


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
