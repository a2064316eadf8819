"""`excise behaviors`: what can be removed by name, what is in a behavior file, and whether it can be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from excise.cli.options import Configure, command
from excise.cli.session import Outcome, Session
from excise.cli.tables import heading, line, plain_table

if TYPE_CHECKING:
    from excise.behaviors import Behavior, Source

_NAME = Annotated[str, typer.Argument(help="A behavior: a name, or the path of a TOML file.", show_default=False)]
_FILE = Annotated[str, typer.Argument(help="The path of a TOML file, or a name.", show_default=False)]


@command("behaviors", uses_models=False, group=True)
def behaviors(session: Session) -> Outcome:  # noqa: ARG001 - nothing here takes time
    """List the behaviors that `--behavior` knows by name; the commands under it show, check and make behavior files.

    For another one, write a TOML file like theirs (`excise behaviors new`), or give `--target`, `--baseline` and
    `--marker`.
    """
    from excise.behaviors import Behavior, known_behaviors

    found = []
    for name, path in known_behaviors().items():
        behavior = Behavior.load(path)
        found.append({"name": name, "description": behavior.description.strip(), "file": str(path)})
    shown = [line(f"{item['name']}\n  {item['description']}\n  {item['file']}\n") for item in found]
    return Outcome(data={"behaviors": found}, shown=tuple(shown))


@command("behaviors show", uses_models=False)
def show(session: Session, name: _NAME) -> Outcome:  # noqa: ARG001 - nothing here takes time
    """Show what a behavior is made of: its sources, how it is told, and its defaults."""
    from excise.behaviors import Behavior
    from excise.behaviors.catalog import locate

    behavior, path = Behavior.load(name), locate(name)
    data = {"file": str(path), **behavior.model_dump(mode="json", exclude_none=True)}
    return Outcome(data=data, shown=tuple(_shown(behavior, str(path))))


@command(
    "behaviors validate",
    takes=("splits", "seed", "offline"),
    uses_models=False,
)
def validate(session: Session, configure: Configure, file: _FILE) -> Outcome:  # noqa: ARG001 - nothing here takes time
    """Check a behavior file: whether it parses, its patterns compile, its sources can be read, and its sides and splits
    are apart and large enough.

    Says everything that is wrong at once. The exit code is 3 where there is an error, 0 where there are warnings alone.
    """
    from excise.behaviors import SplitSizes
    from excise.behaviors.check import check

    config = configure(model="(none)")
    found = check(file, sizes=SplitSizes(*config.splits), seed=config.seed, offline=config.offline)
    shown: list[RenderableType] = [line(f"{found.path}: {'valid' if found.valid else 'not valid'}")]
    if found.sizes is not None:
        shown += [line(""), _sizes(found.sizes)]
    shown += [line(f"warning: {each.about}: {each.message}") for each in found.findings if each.kind == "warning"]
    wrong = tuple(f"{each.about}: {each.message}" for each in found.findings if each.kind == "error")
    return Outcome(data=found.to_json(), shown=tuple(shown), missed=wrong)


def _shown(behavior: Behavior, path: str) -> list[RenderableType]:
    shown: list[RenderableType] = [heading(behavior.name), line(behavior.description.strip()), line(path)]
    sides = {"target": behavior.target, "baseline": behavior.baseline, "keep": behavior.keep or {}}
    for side, sources in sides.items():
        if sources:
            shown += [heading(f"{side.capitalize()} prompts"), _sources(sources)]
    if behavior.paired:
        shown.append(line("target and baseline are paired row by row"))
    shown.append(heading("Shows the behavior"))
    kinds = {"marker": behavior.detectors.markers, "pattern": behavior.detectors.patterns}
    table = plain_table("", "")
    for kind, texts in kinds.items():
        for text in texts:
            table.add_row(kind, text if len(text) <= 160 else f"{text[:159]}…")
    shown.append(table)
    others = {
        "window": behavior.detectors.window,
        "deflections": behavior.deflections and "yes",
        "classifier": behavior.classifier and behavior.classifier.model,
        "judge": behavior.judge and behavior.judge.rubric.strip(),
        "margin": behavior.margin and "yes",
        "system": behavior.system,
        "thinking": behavior.thinking,
        "max_tokens": behavior.max_tokens,
        "positions": ", ".join(behavior.positions),
        "near_duplicates": behavior.near_duplicates,
        "overlap": behavior.overlap,
    }
    table = plain_table("", "")
    for key, value in others.items():
        if value is not None:
            table.add_row(key, str(value).lower() if isinstance(value, bool) else str(value))
    return [*shown, heading("Settings"), table]


def _sources(sources: Mapping[Any, Source]) -> RenderableType:
    """Each source once, with the splits that share it."""
    table = plain_table("splits", "source", "")
    for source in dict.fromkeys(sources.values()):
        splits = [split for split, other in sources.items() if other == source]
        given = source.model_dump(exclude_defaults=True, exclude={"location", "where"})
        about = [f"{key}: {value}" for key, value in given.items()]
        about += [f"only {name}: {' or '.join(texts)}" for name, texts in source.where]
        table.add_row(", ".join(splits), source.location, "; ".join(about))
    return table


def _sizes(sizes: Mapping[str, list[int]]) -> RenderableType:
    keeps = any(len(counts) > 2 for counts in sizes.values())
    table = plain_table("split", "target", "baseline", *(["keep"] if keeps else []), right=(1, 2, 3))
    for split, counts in sizes.items():
        table.add_row(split, *map(str, counts))
    return table
