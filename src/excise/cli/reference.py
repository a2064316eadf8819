"""The reference page of the command line, from the commands themselves: `python -m excise.cli.reference`."""

from __future__ import annotations

import sys
from typing import Any

import typer

from excise.cli.app import app
from excise.config import RunConfig, describe

_HEAD = """# Commands

Written by `make docs` from the commands themselves; a test fails when it is stale.

Data goes to stdout, everything else to stderr. `--json` prints one JSON object; where a command fails it is
`{"error": {"type", "message", "hint"}}`. After Ctrl-C the same `run`, `demo` or `search` goes on.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | an error of the user's or of the environment's, with a hint |
| 2 | wrong usage |
| 3 | finished, but a stated goal or a proof was missed |
| 130 | stopped by Ctrl-C |
"""


def reference() -> str:
    """The whole page, as Markdown."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    pages = [page for name, command in commands.items() for page in _pages(name, command)]
    return "\n".join([_HEAD, *pages, _configuration()])


def _pages(name: str, command: Any) -> list[str]:
    """The command's page, and those of the commands under it."""
    under = getattr(command, "commands", {})
    return [_page(name, command), *(_page(f"{name} {other}", one) for other, one in under.items())]


def _page(name: str, command: Any) -> str:
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    usage = " ".join(["excise", name, *(argument.name.upper() for argument in arguments), "[OPTIONS]"])
    rows = [f"| `{argument.name.upper()}` | {argument.help} |" for argument in arguments]
    rows += [f"| {_flag(option)} | {option.help} |" for option in options]
    return "\n".join([f"## excise {name}\n", command.help, f"\n```\n{usage}\n```\n", "| | |\n|---|---|", *rows, ""])


def _flag(option: Any) -> str:
    names = f"`{' / '.join([*option.opts, *option.secondary_opts])}`"
    return f"{names} (required)" if option.required else names


def _configuration() -> str:
    lines = [
        "## Configuration file\n",
        "`--config FILE` reads settings from a TOML file, one per line (`seed = 1`); flags go first.\n",
        "| key | default | |\n|---|---|---|",
    ]
    for name, field in RunConfig.model_fields.items():
        default = "required" if field.is_required() else _toml(field.default)
        lines.append(f"| `{name}` | {default} | {describe(name)['help']} |")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
