"""`excise inspect`: what writes to the residual stream, and the proof that nothing was missed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table

from excise.cli.options import command, settings
from excise.cli.session import Outcome, Session
from excise.cli.tables import heading, line, pattern, plain_table, ranges, writers_table
from excise.config import RunConfig

if TYPE_CHECKING:
    from excise.model.proof import Proof


@command("inspect", takes=(*settings("model", but=("allow_partial",)), "seed"))
def inspect(
    session: Session,
    config: RunConfig,
    weights: Annotated[
        bool | None,
        typer.Option(
            "--weights/--no-weights",
            help="Load the weights and prove the list; or read config.json alone (the default where there is no more).",
            show_default=False,
        ),
    ] = None,
) -> Outcome:
    """Show every writer of the residual stream by role and layer, the coverage, and the leak that proves it.

    The leak is what remains of a random direction after it is projected out of every writer. The exit code is 3 where
    something was not resolved, or the leak is above what the model's precision allows. From the configuration alone
    (a 671 B model takes seconds and no memory) the same list is shown, and nothing is proven.
    """
    model = session.load_or_outline(config, weights=weights)
    session.progress("survey", 0, 1)
    survey = model.survey
    session.progress("survey", 1, 1)
    session.progress("probe", 0, 1)
    proof = model.prove(seed=config.seed) if model.has_weights else None
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
        "leak": None if proof is None else proof.leak,
        "leak_tolerance": None if proof is None else proof.tolerance,
        "leak_fixed": None if proof is None else proof.fixed,
        "writers": writers,
        "unresolved": unresolved,
    }
    shown: list[RenderableType] = [
        line(f"{config.model}: {survey.layers} layers, hidden size {survey.hidden}, {len(writers)} writers\n"),
        writers_table(writers),
    ]
    missed: list[str] = []
    if survey.unresolved:
        shown += [heading("Not resolved"), _unresolved(unresolved)]
        missed.append(f"coverage {survey.coverage:.1%}: {len(unresolved)} places reach the stream and cannot be edited")
    told, doubts = _proof(survey.coverage, proof)
    shown += [line(text) for text in told]
    return Outcome(data=data, shown=tuple(shown), missed=(*missed, *doubts))


def _unresolved(unresolved: list[dict[str, Any]]) -> Table:
    """What was seen that cannot be edited exactly, by reason."""
    table = plain_table("reason", "parameters", "layers")
    for reason in dict.fromkeys(str(item["reason"]) for item in unresolved):
        same = [item for item in unresolved if item["reason"] == reason]
        names = list(dict.fromkeys(pattern(name) for item in same for name in item["parameters"]))
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        table.add_row(reason, ", ".join(names[:6]) + more, ranges(item["layer"] for item in same))
    return table


def _proof(coverage: float, proof: Proof | None) -> tuple[list[str], list[str]]:
    """What to say about the leak, and what of it is a proof that was missed."""
    if proof is None:
        return [f"\ncoverage {coverage:.1%}; no weights were read, so no leak was measured"], []
    told = [f"\ncoverage {coverage:.1%}, leak {proof.leak:.2g} (proven below {proof.tolerance:.2g})"]
    if proof.fixed:
        table = f"a table of positions that is not learned adds {proof.fixed:.2g}, the same for every prompt"
        told.append(f"{table}: no edit of weights removes that")
    if proof.leak <= proof.tolerance:
        return told, []
    why = "that remains" if proof.survey.unresolved else "something that writes was not found"
    return told, [f"the leak is {proof.leak:.2g}, not below {proof.tolerance:.2g}: {why}"]
