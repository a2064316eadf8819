"""`excise find`: where in the residual stream the behavior can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from excise.cli.options import command, settings
from excise.cli.session import Outcome, Session
from excise.cli.tables import line, plain_table
from excise.config import RunConfig
from excise.errors import OutputExistsError


@command("find", takes=(*settings("model", "data", but=("force", "max_tokens")), "seed"))
def find(
    session: Session,
    config: RunConfig,
    method: Annotated[
        str, typer.Option("--method", help="How: mean-difference, or projected (the baseline's mean taken out).")
    ] = "mean-difference",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the directions to this new file.", show_default=False)
    ] = None,
) -> Outcome:
    """Find the direction of the behavior at every layer, and how well it tells target from baseline prompts."""
    from excise.behaviors import Behavior, SplitSizes
    from excise.find import find_directions

    if out is not None and out.exists():
        raise OutputExistsError(f"{out} exists", hint="remove it, or choose another --out")
    behavior = Behavior.from_config(config)
    splits = behavior.splits(SplitSizes(*config.splits), seed=config.seed, offline=config.offline)
    model = session.load_model(config, allow_partial=config.allow_partial)
    missed = session.prove(model, config)
    directions = find_directions(
        model,
        behavior,
        splits=splits,
        method=method,
        seed=config.seed,
        batch_size=config.batch_size,
        progress=session.progress,
    )
    if out is not None:
        directions.save(out)
    found = directions.to_json()
    data: dict[str, Any] = {
        "model": config.model,
        "behavior": behavior.name,
        "splits": splits.sizes(),
        "out": None if out is None else str(out),
        **found,
    }
    best = found["best"]
    table = plain_table("layer", "AUC", "effect", "silhouette", "length", "", right=range(5))
    for place in found["separability"]:
        if place["position"] == best["position"]:
            numbers = [f"{place[name]:.3f}" for name in ("auc", "effect", "silhouette", "norm_ratio")]
            table.add_row(str(place["layer"]), *numbers, "best" if place["layer"] == best["layer"] else "")
    shown: list[RenderableType] = [line(f"{behavior.name} at position {best['position']}, held out:\n"), table]
    if out is not None:
        shown.append(line(f"\nwritten: {out}"))
    return Outcome(data=data, shown=tuple(shown), missed=missed)
