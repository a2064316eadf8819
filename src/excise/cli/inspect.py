"""`excise inspect`: what writes to the residual stream, and the proof that nothing was missed."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType

from excise.cli.options import command, settings
from excise.cli.session import Outcome, Session
from excise.cli.tables import heading, line, plain_table, ranges, writers_table
from excise.config import RunConfig


@command("inspect", takes=settings("model", but=("allow_partial",)))
def inspect(session: Session, config: RunConfig) -> Outcome:
    """Show every writer of the residual stream by role and layer, the coverage, and the leak that proves it.

    The leak is what remains of a random direction after it is projected out of every writer. The exit code is 3 where
    something was not resolved, or the leak is above what the model's precision allows.
    """
    model = session.load_model(config)
    session.progress("survey", 0, 1)
    survey = model.survey
    session.progress("survey", 1, 1)
    session.progress("probe", 0, 1)
    leak, tolerance = model.leak(seed=config.seed), model.leak_tolerance
    session.progress("probe", 1, 1)

    writers = [writer.to_json() for writer in survey.writers]
    unresolved: list[dict[str, Any]] = [
        {"layer": item.layer, "parameters": list(item.parameters), "reason": item.reason} for item in survey.unresolved
    ]
    data = {
        "model": config.model,
        "layers": survey.layers,
        "hidden": survey.hidden,
        "coverage": survey.coverage,
        "leak": leak,
        "leak_tolerance": tolerance,
        "writers": writers,
        "unresolved": unresolved,
    }
    shown: list[RenderableType] = [
        line(f"{config.model}: {survey.layers} layers, hidden size {survey.hidden}, {len(writers)} writers\n"),
        writers_table(writers),
    ]
    missed = []
    if unresolved:
        table = plain_table("reason", "parameters", "layers")
        for reason, parameters in sorted({(item["reason"], tuple(item["parameters"])) for item in unresolved}):
            layers = [item["layer"] for item in unresolved if item["reason"] == reason]
            table.add_row(str(reason), ", ".join(parameters), ranges(layers))
        shown += [heading("Not resolved"), table]
        missed.append(f"coverage {survey.coverage:.1%}: {len(unresolved)} places reach the stream and cannot be edited")
    shown.append(line(f"\ncoverage {survey.coverage:.1%}, leak {leak:.2g} (proven below {tolerance:.2g})"))
    if not leak < tolerance:
        missed.append(f"the leak is {leak:.2g}, not below {tolerance:.2g}: something that writes was not found")
    return Outcome(data=data, shown=tuple(shown), missed=tuple(missed))
