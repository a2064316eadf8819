"""`excise bake`: write the edited model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from excise.cli.options import command
from excise.cli.progress import size
from excise.cli.session import Outcome, Session
from excise.cli.tables import line
from excise.config import RunConfig


@command("bake", takes=("model", "revision", "trust_remote_code", "offline"))
def bake(
    session: Session,
    config: RunConfig,
    edit: Annotated[Path, typer.Argument(help="Edit file (.safetensors).", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Directory of the edited model.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Also onto other weights of the same architecture.")] = False,
) -> Outcome:
    """Write MODEL with EDIT applied, in the format it came in; only the edited tensors change.

    The result loads without excise. `excise verify` proves it.
    """
    from excise.bake import bake as write

    report = write(
        config.model,
        edit,
        out,
        force=force,
        revision=config.revision,
        offline=config.offline,
        trust_remote_code=config.trust_remote_code,
        progress=session.progress,
    )
    trust = " --trust-remote-code" if config.trust_remote_code else ""
    shown = (
        line(f"{len(report.edited)} of {report.tensors} tensors edited, {size(report.bytes)} written to {out}"),
        line(f"to prove it: excise verify {out} --base {config.model} --edit {edit}{trust}"),
    )
    return Outcome(data=report.to_json(), shown=shown)
