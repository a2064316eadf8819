"""`excise run`: the whole job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from excise.cli.comparisons import comparison_lines, positions_table, strata_tables
from excise.cli.options import command, settings
from excise.cli.progress import duration
from excise.cli.session import Outcome, Session
from excise.cli.tables import front_table, heading, line, score_table
from excise.config import RunConfig

_MOST_BAKED_LEAK = 5e-3  # rounding to bf16 leaves less, a missed writer more


@command("run", takes=settings("model", "data", "search", "output"))
def run(session: Session, config: RunConfig) -> Outcome:
    """Find the behavior, search for the edit that removes it, validate it on held-out prompts, bake it, report.

    With `--strength -1` the edit strengthens it instead.

    Called again with the same settings, it goes on where it was stopped.
    """
    import excise

    result = excise.run(config, progress=session.progress)
    return Outcome(data=result, shown=tuple(told(result)), missed=missed(result, config))


def told(result: Mapping[str, Any]) -> list[RenderableType]:
    """What people want to know of a result."""
    out = Path(result["out"])
    parts: list[RenderableType] = [
        heading(f"{result['model']}: {result['behavior']}{', strengthened' if _strengthens(result) else ''}"),
        score_table({"before": result["before"], "after": result["after"]}),
        *comparison_lines(result.get("comparison", {}), "before to after"),
        positions_table({"before": result["before"], "after": result["after"]}),
        *strata_tables({"before": result["before"], "after": result["after"]}),
        *_thinking(result),
        *_random(result),
        *([line(result["seal"]["note"])] if result.get("seal", {}).get("unseen") else []),  # else it is a warning
        heading("Front"),
        front_table(result["front"]),
        line(""),
        line(f"coverage {100 * result['coverage']:.0f} %, leak {result['leak']:.2g}" + _baked(result)),
    ]
    parts += [line(f"warning: {warning}") for warning in result.get("warnings", ())]
    parts.append(line(f"{duration(result['seconds'])}; see {out / 'report.html'}"))
    return parts


def missed(result: Mapping[str, Any], config: RunConfig) -> tuple[str, ...]:
    """Goals and proofs that the run did not reach."""
    after, found = result["after"], []
    if config.max_rate is not None and after["rate"] > config.max_rate:
        found.append(f"the behavior is shown in {after['rate']:.1%} of the report prompts, above {config.max_rate:.1%}")
    if config.max_kl is not None and after["kl_first"]["mean"] > config.max_kl:
        found.append(f"the first-token KL is {after['kl_first']['mean']:.3g}, above {config.max_kl:.3g}")
    for part, where in ((result, ""), (result.get("thinking") or {}, "with thinking, ")):
        kept = part.get("comparison", {}).get("keep", {})
        if kept.get("holds") is False:
            found.append(where + kept["note"])
    if result["leak"] > result["leak_tolerance"]:
        found.append(f"coverage is not proven: leak {result['leak']:.2g}, above {result['leak_tolerance']:.2g}")
    baked = result.get("leak_baked")
    if baked is not None and baked > _MOST_BAKED_LEAK:
        found.append(f"the baked model leaks {baked:.2g}, above {_MOST_BAKED_LEAK:.2g}")
    for check in (result.get("verify") or {}).get("checks", ()):
        if not check["passed"]:
            found.append(f"{check['name']}: {check['detail']}")
    return tuple(found)


def _thinking(result: Mapping[str, Any]) -> list[RenderableType]:
    """The same with thinking switched on, where that was measured."""
    found = result.get("thinking")
    if not found:
        return []
    sides = {"before": found["before"], "after": found["after"]}
    compared = comparison_lines(found["comparison"], "before to after")
    return [heading("With thinking"), score_table(sides), *compared, positions_table(sides), *strata_tables(sides)]


def _random(result: Mapping[str, Any]) -> list[RenderableType]:
    draws = result.get("controls", {}).get("random_direction", {}).get("draws", ())
    if not draws:
        return []
    each = ", ".join(f"{draw['rate']:.1%} of {draw['prompts'][0]}" for draw in draws)
    left = "show it in" if _strengthens(result) else "leave"
    return [line(f"random directions in its place {left} {each}")]


def _strengthens(result: Mapping[str, Any]) -> bool:
    return bool(result.get("search", {}).get("strength", 1) < 0)


def _baked(result: Mapping[str, Any]) -> str:
    return "" if result.get("leak_baked") is None else f", leak of the baked model {result['leak_baked']:.2g}"
