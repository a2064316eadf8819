"""`excise verify`: prove that a baked model is what it should be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from excise.cli.options import Configure, command
from excise.cli.session import Outcome, Session
from excise.cli.tables import plain_table


@command("verify", takes=("revision", "trust_remote_code", "offline"))
def verify(
    session: Session,
    configure: Configure,
    out: Annotated[Path, typer.Argument(help="Directory of the edited model.", show_default=False)],
    base: Annotated[str, typer.Option("--base", help="The model it was made from.", show_default=False)],
    edit: Annotated[Path, typer.Option("--edit", help="The edit it was made with.", show_default=False)],
    live: Annotated[
        bool, typer.Option("--live/--no-live", help="Compare its logits with the live edit's; loads both models.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="The edit was made for other weights.")] = False,
) -> Outcome:
    """Prove a baked model: untouched tensors the same byte for byte, leak, no NaN, logits as with the live edit.

    The exit code is 3 where a check fails.
    """
    from excise.bake import verify as prove

    config = configure(model=base)
    report = prove(
        out,
        base=base,
        edit=edit,
        live=live,
        force=force,
        revision=config.revision,
        offline=config.offline,
        trust_remote_code=config.trust_remote_code,
        progress=session.progress,
    )
    table = plain_table("", "check", "")
    for check in report.checks:
        table.add_row("passed" if check.passed else "FAILED", check.name, check.detail)
    failed = tuple(f"{check.name}: {check.detail}" for check in report.checks if not check.passed)
    return Outcome(data=report.to_json(), shown=(table,), missed=failed)
