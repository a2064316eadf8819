"""What two models' scores amount to, in the terminal: differences with intervals and tests, and where it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from excise.cli.tables import line, plain_table

_MOST_STRATA = 20


def comparison_lines(pair: Mapping[str, Any], title: str) -> list[Text]:
    """The difference by every labeller: points, 95 % interval, McNemar's p; the same of prompts where the behavior must
    stay, and whether it does; then what the sample cannot tell.
    """
    labellers = pair.get("labellers", {})
    found = _differences(labellers, title)
    kept = pair.get("keep")
    if kept:
        found += _differences(kept["labellers"], f"where it must stay, {title}")
        found.append(line(kept["note"]))
    if labellers:
        found.append(line(next(iter(labellers.values()))["power"]["note"]))
    return found


def strata_tables(columns: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """The rate by category and by language, largest first, where prompts have any; of those to keep, too."""
    found = []
    for by in ("category", "language"):
        groups = [scores.get("strata", {}).get(by) or {} for scores in columns.values()]
        for side, title in (("", by), ("keep_", f"{by}, where it must stay")):
            counts = {name: row.get(f"{side}count") or 0 for each in groups for name, row in each.items()}
            names = sorted((name for name in counts if counts[name]), key=lambda name: (-counts[name], name))
            if names:
                table = plain_table(title, "prompts", *columns, right=range(1, len(columns) + 2))
                for name in names[:_MOST_STRATA]:
                    rates = [each.get(name, {}).get(f"{side}rate") for each in groups]
                    cells = ("" if rate is None else f"{rate:.1%}" for rate in rates)
                    table.add_row(name, str(counts[name]), *cells)
                if len(names) > _MOST_STRATA:
                    table.add_row(f"and {len(names) - _MOST_STRATA} more", "", *("" for _ in columns))
                found.append(table)
    return found


def _differences(labellers: Mapping[str, Any], title: str) -> list[Text]:
    found = []
    for name, each in labellers.items():
        low, high = (100 * bound for bound in each["interval"])
        said = f"{title}: {100 * each['difference']:+.1f} points ({low:+.1f} to {high:+.1f}) by {name}"
        said += f", McNemar p = {each['p_exact']:.2g}"
        if len(labellers) > 1:
            said += f", {each['p_holm']:.2g} among {len(labellers)} (Holm)"
        found.append(line(f"{said}; shown by only one: {each['only_first']} and {each['only_second']}"))
    return found


def positions_table(columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """How many show the behavior within so many tokens, how many only late, and how many never stop thinking."""
    table = plain_table("", *columns, right=range(1, len(columns) + 1))
    where = [scores.get("positions") or {} for scores in columns.values()]
    looks = dict.fromkeys(look for each in where for look in each.get("rate_by_tokens", {}))
    for look in sorted(looks, key=int):
        rates = [each.get("rate_by_tokens", {}).get(look) for each in where]
        table.add_row(f"within {look} tokens", *("" if rate is None else f"{rate['rate']:.1%}" for rate in rates))
    table.add_row("first after token 50", *(str(each.get("delayed", "")) for each in where))
    unfinished = [scores.get("unfinished_thinking", 0) for scores in columns.values()]
    if any(unfinished):
        table.add_row("never stopped thinking", *map(str, unfinished))
    return table
