"""`excise chat`: the model with the edit off and on, side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from excise.cli.options import command, settings
from excise.cli.session import Outcome, Session
from excise.config import RunConfig


@command("chat", takes=(*settings("model", but=("allow_partial",)), "system", "thinking"))
def chat(
    session: Session,
    config: RunConfig,
    edit: Annotated[Path | None, typer.Option("--edit", help="Edit file; without one the model is alone.")] = None,
    message: Annotated[
        list[str] | None, typer.Option("--message", help="Say this and end, instead of asking (repeatable).")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Length of an answer, at most.")] = 256,
    force: Annotated[bool, typer.Option("--force", help="Also with other weights of the same architecture.")] = False,
) -> Outcome:
    """Talk to MODEL with the edit off and on. Each message stands alone; an empty line or Ctrl-D ends the talk."""
    import excise

    change = None if edit is None else excise.Edit.load(edit)
    model = session.load_model(config)

    def answer(text: str) -> str:
        return str(model.chat(text, system=config.system, thinking=config.thinking == "on", max_tokens=tokens))

    turns: list[dict[str, Any]] = []
    for said in message or _asked():
        turn = {"message": said, "base": answer(said)}
        if change is not None:
            with model.edited(change, force=force):
                turn["edited"] = answer(said)
        turns.append(turn)
        if not session.as_json:
            names = {"base": "edit off", "edited": "edit on"} if change is not None else {"base": "model"}
            for key, name in names.items():
                _say(session, f"{name}> {turn[key]}\n")
    return Outcome(data={"model": config.model, "edit": None if edit is None else str(edit), "turns": turns})


def _asked() -> Iterator[str]:
    """Messages from stdin, until an empty line or its end."""
    while True:
        if sys.stdin.isatty():
            sys.stderr.write("you> ")
            sys.stderr.flush()
        said = sys.stdin.readline().strip()
        if not said:
            return
        yield said


def _say(session: Session, text: str) -> None:
    session.stdout.write(text + "\n")
    session.stdout.flush()
