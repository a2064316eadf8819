"""`excise find`: where in the residual stream the behavior can be read, and which parts of the model write it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table

from excise.cli.options import command, settings
from excise.cli.session import Outcome, Session
from excise.cli.tables import heading, line, plain_table
from excise.config import RunConfig
from excise.errors import OutputExistsError

if TYPE_CHECKING:
    from excise.analysis import Components, Effect

_SHOWN_LABELS = 4


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
    components: Annotated[
        bool,
        typer.Option(
            "--components", help="Also say which layers, heads, neurons and experts write it, and ablate the first."
        ),
    ] = False,
    top: Annotated[int, typer.Option("--top", help="How many components of each kind.")] = 20,
    components_edit: Annotated[
        Path | None,
        typer.Option(
            "--components-edit",
            help="Write an edit that removes the confirmed components to this new file (implies --components).",
            show_default=False,
        ),
    ] = None,
) -> Outcome:
    """Find the direction of the behavior at every layer, and how well it tells target from baseline prompts."""
    from excise.behaviors import Behavior, SplitSizes
    from excise.find import find_directions, fit_where_shown, where_shown

    for path in (out, components_edit):
        if path is not None and path.exists():
            raise OutputExistsError(f"{path} exists", hint="remove it, or give another name")
    behavior = Behavior.from_config(config)
    splits = behavior.splits(SplitSizes(*config.splits), seed=config.seed, offline=config.offline)
    model = session.load_model(config, allow_partial=config.allow_partial)
    missed = session.prove(model, config)
    if config.shown_only:
        shown_on = fit_where_shown(model, behavior, splits, batch_size=config.batch_size, progress=session.progress)
        splits = where_shown(behavior, splits, shown_on)
    notes = splits.warnings
    options: Mapping[str, Any] = {"splits": splits, "seed": config.seed, "batch_size": config.batch_size}
    directions = find_directions(model, behavior, method=method, progress=session.progress, **options)
    if out is not None:
        directions.save(out)
    found = directions.to_json()
    written = None if out is None else str(out)
    data = {
        "model": config.model,
        "behavior": behavior.name,
        "splits": splits.sizes(),
        "out": written,
        "notes": list(notes),
        **found,
    }
    shown = [*_show_directions(behavior.name, found, out), *(line(f"note: {note}") for note in notes)]
    if components or components_edit is not None:
        from excise.analysis import components as find_components

        parts = find_components(model, behavior, directions=directions, top=top, progress=session.progress, **options)
        data["components"] = {**parts.to_json(), "edit": _save(parts, components_edit)}
        shown += _show_components(parts, data["components"]["edit"])
        if components_edit is not None and parts.edit is None:
            missed = (*missed, "no set of components was confirmed: no edit was written")
    return Outcome(data=data, shown=tuple(shown), missed=missed)


def _show_directions(behavior: str, found: Mapping[str, Any], out: Path | None) -> list[RenderableType]:
    best = found["best"]
    table = plain_table("layer", "AUC", "effect", "silhouette", "length", "", right=range(5))
    for place in found["separability"]:
        if place["position"] == best["position"]:
            numbers = [f"{place[name]:.3f}" for name in ("auc", "effect", "silhouette", "norm_ratio")]
            table.add_row(str(place["layer"]), *numbers, "best" if place["layer"] == best["layer"] else "")
    shown: list[RenderableType] = [line(f"{behavior} at position {best['position']}, held out:\n"), table]
    return [*shown, line(f"\nwritten: {out}")] if out is not None else shown


def _save(found: Components, path: Path | None) -> str | None:
    if path is None or found.edit is None:
        return None
    found.edit.save(path)
    return str(path)


def _show_components(found: Components, edit: str | None) -> list[RenderableType]:
    place = found.attribution
    shown: list[RenderableType] = [
        line(
            f"\nWhat writes it at position {place.position}, as shares of the difference after layer {place.layer} "
            "(target minus baseline prompts; negative: against the behavior):"
        )
    ]
    for kind, rows in found.rows.items():
        table = plain_table("share", "component", "parameter", right=(0,))
        for row in rows:
            table.add_row(f"{100 * row.share:.1f} %", row.label, row.parameter or "")
        shown += [heading(f"{kind}s ({found.counts[kind]}):"), table]
    shown += [heading("Ablated, on unseen prompts:"), _ablations(found)]
    shown += [line(f"\nnot covered: {note}") for note in found.notes]
    return [*shown, line(f"\nwritten: {edit}")] if edit is not None else shown


def _ablations(found: Components) -> Table:
    table = plain_table("shows the behavior", "log-odds", "KL, first", "KL, sequence", "without", right=range(4))

    def add(name: str, effect: Effect | None) -> None:
        if effect is not None:
            numbers = (f"{effect.margin:.2f}", f"{effect.kl_first:.3g}", f"{effect.kl_sequence:.3g}")
            table.add_row(f"{100 * effect.rate:.1f} %", *numbers, name)

    add("nothing", found.base)
    for each in found.confirmations:
        said = "confirmed" if each.confirmed else "not confirmed"
        labels = [component.label for component in each.components[:_SHOWN_LABELS]]
        more = len(each.components) - len(labels)
        add(f"{', '.join(labels)}{f' and {more} more' if more else ''}: {said}", each.together)
        for component, effect in zip(each.components, each.singly, strict=False):
            add(component.label, effect)
        for effect in each.control:
            add(f"{len(each.components)} random {each.kind}s", effect)
    if len([each for each in found.confirmations if each.confirmed]) > 1:
        add("all that were confirmed", found.effect)
    return table
