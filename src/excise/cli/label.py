"""`excise label`: label responses by hand, without knowing which model wrote them, and see which scorer agrees."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.console import RenderableType

from excise.cli.options import command
from excise.cli.session import Outcome, Session
from excise.cli.tables import line, plain_table
from excise.errors import InputError

if TYPE_CHECKING:
    from excise.behaviors.measures import Label
    from excise.evaluation.hand import HandLabels, Item

_LABELS: Mapping[str, Label] = {"b": "behavior", "d": "deflect", "g": "degenerate", "c": "comply"}
_HELP = "b behavior · d deflect · g degenerate · c comply · s skip · u undo · q quit"


@command("label", uses_models=False)
def label(
    session: Session,
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.", show_default=False)],
    count: Annotated[int, typer.Option("--count", min=1, help="How many answers, at most.")] = 50,
    side: Annotated[str, typer.Option("--side", help="Answers to which prompts: target or baseline.")] = "target",
    seed: Annotated[int, typer.Option("--seed", help="Which of them, and in which order.")] = 0,
    score: Annotated[
        list[str] | None,
        typer.Option("--score", help="Compare with this scorer too: classifier, judge, judge:MODEL (repeatable)."),
    ] = None,
) -> Outcome:
    """Label answers of a run by hand, blind, and compare every scorer with the labels.

    Answers of the model with and without the edit come in random order, unnamed. Keys: b behavior, d deflect, g
    degenerate, c comply, s skip, u undo, q quit. The labels are kept in the run: the same command goes on.
    """
    from excise.evaluation import labellers_for
    from excise.evaluation.hand import SIDES, HandLabels, compare, read_behavior, read_rows, sample

    chosen = next((each for each in SIDES if each == side), None)
    if chosen is None:
        raise InputError(f"unknown side '{side}'", hint=f"one of {', '.join(SIDES)}")
    behavior = read_behavior(run)
    labellers = labellers_for(behavior, score or ())  # what cannot be asked for is said before the work
    items = sample(read_rows(run, chosen), count=count, seed=seed)
    hand = HandLabels(run)
    _ask(session, items, hand)
    found = compare(items, hand.of(items), behavior, labellers, progress=session.progress)
    data = {"run": str(run), "behavior": behavior.name, "side": side, "seed": seed, "file": str(hand.path), **found}
    return Outcome(data=data, shown=tuple(_show(data)))


def _ask(session: Session, items: Sequence[Item], hand: HandLabels) -> None:
    """Show one answer after another until all are labelled or skipped, or the input ends."""
    waiting = [index for index, known in enumerate(hand.of(items)) if known is None]
    place = 0
    while place < len(waiting):
        item = items[waiting[place]]
        _say(session, f"\n── {waiting[place] + 1} of {len(items)} ──\nPrompt: {_plain(item.prompt)}\n")
        _say(session, f"{_plain(item.answer)}\n\n{_HELP}")
        key = _key()
        if key in ("", "q"):
            return
        if key == "u" and place > 0:
            place -= 1
            hand.drop(items[waiting[place]])
        elif key in _LABELS:
            hand.put(item, _LABELS[key])
            place += 1
        elif key == "s":
            place += 1
        else:
            _say(session, "nothing to undo" if key == "u" else f"'{key}' is none of the keys")


def _key() -> str:
    """One key from a terminal, or the first letter of a line; empty at the end of the input."""
    if sys.stdin.isatty():
        pressed = click.getchar().lower()
        if pressed == "\x03":
            raise KeyboardInterrupt
        return "" if pressed == "\x04" else pressed
    for read in sys.stdin:
        if read.strip():
            return read.strip()[0].lower()
    return ""


def _plain(text: str) -> str:
    """Text without what a terminal would obey."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)


def _say(session: Session, text: str) -> None:
    """To people, wherever that is: with `--json` stdout is for the outcome alone."""
    stream = sys.stderr if session.as_json else session.stdout
    stream.write(f"{text}\n")
    stream.flush()


def _show(data: Mapping[str, Any]) -> list[RenderableType]:
    shown: list[RenderableType] = [line(f"\n{data['labelled']} labelled by hand, {data['remaining']} to go\n")]
    if not data["labelled"]:
        return shown
    rates = plain_table("by hand", "shows the behavior", "95 %", *_LABELS.values(), right=range(1, 7))
    for source, name in (("before", "without the edit"), ("after", "with the edit")):
        rate = data["hand"][source]
        counts = [str(rate["labels"][each]) for each in _LABELS.values()]
        rates.add_row(name, f"{rate['rate']:.1%}", _between(rate["rate_interval"]), *counts)
    table = plain_table("scorer", "kappa", "95 %", "agrees", "kappa, all labels", "unknown", right=range(1, 6))
    for name, scorer in data["scorers"].items():
        kappa = scorer["kappa"]
        interval = " to ".join(_number(value) for value in kappa["interval"])
        every = _number(scorer["kappa_labels"]["kappa"])
        table.add_row(name, _number(kappa["kappa"]), interval, f"{kappa['agree']:.1%}", every, str(scorer["unknown"]))
    return [*shown, rates, line(""), table, line(f"\nkept in {data['file']}")]


def _between(interval: Sequence[float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def _number(value: float) -> str:
    return "undefined" if value != value else f"{value:.2f}"
