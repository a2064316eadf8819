"""The entry point `excise`."""

from __future__ import annotations

from typing import Annotated

import typer

from excise import __version__
from excise.cli import (
    audit,
    bake,
    behaviors,
    behaviors_new,
    chat,
    demo,
    doctor,
    eval,
    find,
    inspect,
    label,
    run,
    search,
    verify,
)
from excise.cli.options import COMMANDS, Command

__all__ = ["app", "main"]

_ORDER = (run, demo, inspect, find, search, eval, audit, label, bake, verify, chat, doctor)
"""Each module holds the command of its name, in the order of the help."""

_GROUPS = (behaviors,)
"""Each module holds a command that has others under it."""

_UNDER = (behaviors_new,)
"""Further modules with commands under those of `_GROUPS`."""

app = typer.Typer(
    name="excise",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

for _module in _ORDER:
    _name = _module.__name__.rpartition(".")[2]
    app.command(_name, cls=Command)(COMMANDS[_name])

for _module in _GROUPS:
    _name = _module.__name__.rpartition(".")[2]
    _group = typer.Typer(invoke_without_command=True, rich_markup_mode="markdown")
    _group.callback()(COMMANDS[_name])
    for _command in COMMANDS:
        if _command.startswith(f"{_name} "):
            _group.command(_command.removeprefix(f"{_name} "), cls=Command)(COMMANDS[_command])
    app.add_typer(_group, name=_name)


def _version(value: bool) -> bool:
    if value:
        typer.echo(__version__)
        raise typer.Exit
    return value


@app.callback()
def _excise(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Remove one learned behavior from a language model's weights, and prove it."""


def main() -> None:
    """Run the command line."""
    app()
