"""`excise behaviors`: what can be removed by name."""

from __future__ import annotations

from excise.cli.options import command
from excise.cli.session import Outcome, Session
from excise.cli.tables import line, plain_table


@command("behaviors", uses_models=False)
def behaviors(session: Session) -> Outcome:  # noqa: ARG001 - nothing here takes time
    """List the behaviors that `--behavior` knows by name.

    For another one, write a TOML file like theirs, or give `--target`, `--baseline` and `--marker`.
    """
    from excise.behaviors import Behavior, known_behaviors

    found = []
    table = plain_table("name", "what it is", "file")
    for name, path in known_behaviors().items():
        behavior = Behavior.load(path)
        found.append({"name": name, "description": behavior.description.strip(), "file": str(path)})
        table.add_row(name, behavior.description.strip(), str(path))
    shown = [line(f"{item['name']}\n  {item['description']}\n  {item['file']}\n") for item in found]
    return Outcome(data={"behaviors": found}, shown=tuple(shown))
