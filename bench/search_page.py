"""The page that `bench/search.py` writes: fronts on held-out prompts, ours at the incumbent's rates, every split.

page(rows, budget)   # rows as `bench/search.py` prints them
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

WORST_KL = 0.5
"""Of the corner that the hypervolume is measured from: rate 1, this KL."""
GOAL = 1 / 3
"""Of the incumbent's KL at the same rate."""
_DIVERGENCES: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "first-token KL": lambda point: point["kl_first"]["mean"],
    "sequence KL": lambda point: point["kl_sequence"]["mean"],
    "first-token KL where the base model answers": lambda point: point["kept"]["kl_first"],
    "sequence KL where the base model answers": lambda point: point["kept"]["kl_sequence"],
}
_UNITS = (("cpu_seconds", 60.0), ("peak_bytes", 1e9))


def hypervolume(points: Iterable[tuple[float, float]]) -> float:
    """Share of the rectangle up to rate 1 and KL `WORST_KL` that the points dominate."""
    area, reached = 0.0, WORST_KL
    for rate, kl in sorted(points):
        if kl < reached:
            area += (1.0 - rate) * (reached - kl)
            reached = kl
    return area / WORST_KL


def _against(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """At every rate of the incumbent's held-out front, the smallest KL of ours that reaches it, seed by seed."""
    ours = [row for row in rows if row["method"] == "polish"]
    theirs = [row for row in rows if row["method"] == "incumbent"]
    if not (ours and theirs):
        return []
    lines = [
        "## At the incumbent's rates",
        "",
        "The KL at every point of the incumbent's front on the held-out prompts (of all its seeds together, which is",
        "more than any of them found alone), and the smallest one of ours at that rate or a lower one, with its share",
        "of the incumbent's. For each KL, and again without the baseline prompts on which the base model shows the",
        "behavior itself: what changes there is the behavior, and a mean over all prompts counts it as damage.",
        "",
    ]
    for name, kl_of in _DIVERGENCES.items():
        met: list[list[bool]] = [[] for _ in ours]
        seeds = " | ".join(f"seed {row['seed']}" for row in ours)
        lines += [f"| rate | {name}: incumbent | {seeds} |", "|---|---|" + "---|" * len(ours)]
        for rate, kl in _front((point["rate"], kl_of(point)) for row in theirs for point in row["points"]):
            cells = []
            for row, goals in zip(ours, met, strict=True):
                near = [kl_of(point) for point in row["points"] if point["rate"] <= rate]
                goals.append(bool(near) and min(near) <= GOAL * kl)
                cells.append(f"{min(near):.3f} ({min(near) / kl:.2f})" if near else "none")
            lines.append(f"| {rate:.1%} | {kl:.3f} | {' | '.join(cells)} |")
        counts = " | ".join(f"{sum(goals)} of {len(goals)}" for goals in met)
        lines += [f"| at most a third | | {counts} |", ""]
    return lines


def _front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    front: list[tuple[float, float]] = []
    for rate, kl in sorted(points):
        if not front or kl < front[-1][1]:
            front.append((rate, kl))
    return front


def _across(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The edits that were taken, on every split."""
    lines = [
        "## The edit that is taken, on every split",
        "",
        "Rate at first-token / sequence KL. Fit is what the search learned from, tune what trials were scored on,",
        "select what one was chosen on; report is of other sources. Reserve: the rate on select at three quarters of",
        "the strength.",
        "",
        "| search | seed | fit | tune | select | reserve | report | 95 % interval |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for point in row["points"]:
            if not point.get("chosen"):
                continue
            own = point["own"]
            fit = _cell(row["fit"]) if "fit" in row else ""
            low, high = point["rate_interval"]
            report = {"rate": point["rate"], "kl_first": point["kl_first"]["mean"]}
            report["kl_sequence"] = point["kl_sequence"]["mean"]
            reserve = "" if own.get("reserve") is None else f"{own['reserve']:.1%}"
            lines.append(
                f"| {row['method']} | {row['seed']} | {fit} | {_cell(own['tune'])} | {_cell(own['select'])} "
                f"| {reserve} | {_cell(report)} | {low:.1%} to {high:.1%} |"
            )
    return [*lines, ""]


def _cell(found: Mapping[str, float]) -> str:
    return f"{found['rate']:.1%} at {found['kl_first']:.3f} / {found['kl_sequence']:.3f}"


def page(rows: Sequence[Mapping[str, Any]], budget: str) -> str:
    lines = [
        "# Benchmarks",
        "",
        "Written by `python bench/search.py --write docs/benchmarks.md`; do not edit.",
        "",
        f"Bench model (135 M, a learned refusal), budget `{budget}`, 150 target and 150 baseline prompts of sources",
        "that no search saw. KL in nats, base‖edited; rate by our detectors on 64 greedy tokens. Hypervolume: share of",
        f"the rectangle up to rate 1 and first-token KL {WORST_KL} that a front dominates. One machine of two cores.",
        "",
        "Minutes are the processor's: every search ran on one thread, beside others. The incumbent is",
        "[Heretic](https://github.com/p-e-w/heretic) with its defaults, but for the number of trials (by default 200)",
        "and the batch size.",
        "",
        "![held-out fronts](benchmarks.svg)",
        "",
        "| method | seed | trials | minutes | peak GB | hypervolume | held-out: rate at first-token KL (sequence KL) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        points = sorted(row["points"], key=lambda point: (point["rate"], point["kl_first"]["mean"]))
        front = " · ".join(
            f"{'**' if point.get('chosen') else ''}{point['rate']:.1%} at {point['kl_first']['mean']:.3f} "
            f"({point['kl_sequence']['mean']:.3f}){'**' if point.get('chosen') else ''}"
            for point in points
        )
        minutes, peak = (f"{row[key] / unit:.1f}" if key in row else "" for key, unit in _UNITS)
        lines.append(
            f"| {row['method']} | {row['seed']} | {row.get('trials', '')} | {minutes} | {peak} "
            f"| {row['hypervolume']:.3f} | {front} |"
        )
    lines += ["", "Bold: the edit that the search takes by itself.", ""]
    return "\n".join([*lines, *_against(rows), *_across(rows)])
