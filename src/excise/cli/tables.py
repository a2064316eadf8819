"""Tables that several commands show."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

_INDEX = re.compile(r"\.\d+(?=\.|$)")


def plain_table(*headers: str, right: Iterable[int] = ()) -> Table:
    """A table without lines; the columns numbered in `right` hold numbers."""
    table = Table(show_header=any(headers), box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index in set(right) else "left", overflow="fold")
    return table


def writers_table(writers: Sequence[Mapping[str, Any]]) -> Table:
    """Writers by role and parameter pattern; `*` stands for the index of a layer or an expert."""
    rows: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for writer in writers:
        rows[
            writer["role"],
            pattern(writer["parameter"]),
            writer["axis"],
            writer.get("expert_axis"),
            writer.get("bias") is not None,
            writer.get("gain") is not None,
        ].append(writer["layer"])
    table = plain_table("role", "parameter", "layers", "axis", "experts", "bias", "gain", right=(3,))
    for (role, parameter, axis, expert_axis, bias, gain), layers in rows.items():
        experts = "" if expert_axis is None else f"axis {expert_axis}"
        where = "" if role == "embedding" else ranges(layers)
        table.add_row(role, parameter, where, str(axis), experts, "yes" if bias else "", "yes" if gain else "")
    return table


def pattern(parameter: str) -> str:
    """A parameter's name with `*` for every index: the same for all layers."""
    return _INDEX.sub(".*", parameter)


def score_table(columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """Scores (`Scores.to_json()`) side by side, one column for each name."""
    table = plain_table("", *columns, right=range(1, len(columns) + 1))
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "shows the behavior": _rate,
        "shown where it must stay": lambda scores: _rate(scores, "keep_"),
        "KL, first token": lambda scores: _summary(scores.get("kl_first")),
        "KL, sequence": lambda scores: _summary(scores.get("kl_sequence")),
        "same first token": lambda scores: _percent(scores.get("top1")),
        "perplexity ratio": lambda scores: _number(scores.get("perplexity_ratio")),
    }
    for name, cell in rows.items():
        cells = [cell(scores) for scores in columns.values()]
        if any(cells):
            table.add_row(name, *cells)
    return table


def front_table(front: Sequence[Mapping[str, Any]]) -> Table:
    """The Pareto front: what each of its edits costs."""
    keys = list(dict.fromkeys(key for point in front for key in point.get("scores", {})))
    headers = ("shows the behavior", "KL, first token", *keys)
    table = plain_table(*headers, "edit", right=range(len(headers)))
    for point in front:
        scores = [_number(point.get("scores", {}).get(key)) for key in keys]
        table.add_row(_percent(point["rate"]), _number(point["kl_first"]), *scores, str(point.get("edit", "")))
    return table


def heading(text: str) -> Text:
    """A line that names what follows."""
    return Text(f"\n{text}", style="bold")


def line(text: str) -> Text:
    """A line as it is: nothing in it is markup."""
    return Text(text)


def ranges(numbers: Iterable[int]) -> str:
    """`0-3, 7, 9-12`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _rate(scores: Mapping[str, Any], side: str = "") -> str:
    if scores.get(f"{side}rate") is None:
        return ""
    interval = scores.get(f"{side}rate_interval")
    return _percent(scores[f"{side}rate"]) + (
        f" ({_percent(interval[0])} to {_percent(interval[1])})" if interval else ""
    )


def _summary(summary: Mapping[str, float] | None) -> str:
    if not summary:
        return ""
    return f"mean {_number(summary['mean'])}, median {_number(summary['median'])}, max {_number(summary['max'])}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
