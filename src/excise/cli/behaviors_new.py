"""`excise behaviors new`: a behavior file to start from, with markers that the model's own responses suggest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType

from excise.cli.options import Configure, command, settings
from excise.cli.session import Outcome, Session
from excise.cli.tables import line, plain_table
from excise.config import RunConfig
from excise.errors import InputError, OutputExistsError

if TYPE_CHECKING:
    from excise.behaviors import Behavior, Source
    from excise.behaviors.markers import Proposal

_NOT_ASKED = ("model", "evidence", "allow_partial", "behavior", "category", "language", "shown_only", "force")
_PLACEHOLDER = "\N{REPLACEMENT CHARACTER}"


@command("behaviors new", takes=(*settings("model", "data", but=_NOT_ASKED), "seed"))
def new(
    session: Session,
    configure: Configure,
    file: Annotated[Path, typer.Argument(help="The TOML file to write.", show_default=False)],
    description: Annotated[str, typer.Option("--description", help="What the behavior is.", show_default=False)] = "",
    model: Annotated[
        str | None,
        typer.Option("--model", help="Propose markers from the responses of this model: a directory or a Hub id."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="One set of prompts, asked under --target-system and --baseline-system."),
    ] = None,
    target_system: Annotated[
        str | None, typer.Option("--target-system", help="System prompt that brings the behavior about.")
    ] = None,
    baseline_system: Annotated[
        str | None, typer.Option("--baseline-system", help="System prompt that keeps it away.")
    ] = None,
) -> Outcome:
    """Write a behavior file to start from.

    With `--target` and `--baseline` (or `--prompts` and two system prompts) these are filled in. With `--model` the
    model answers them, and phrases that tell the two sides' responses apart, on held-out prompts too, are proposed as
    markers: read them before you trust them.
    """
    from excise.behaviors import Behavior
    from excise.behaviors.scaffold import scaffold

    if file.exists():
        raise OutputExistsError(f"{file} exists", hint="remove it, or give another name")
    if file.suffix != ".toml":
        raise InputError(f"{file} is not the name of a TOML file", hint=f"write {file.with_suffix('.toml')}")
    config = configure(model=model or "(none)")
    systems = _systems(prompts, target_system, baseline_system, config)
    sources = _sources(config, prompts)
    proposal = None
    if model is not None:
        if not sources:
            raise InputError("there are no prompts for the model", hint="give --target and --baseline, or --prompts")
        proposal = _propose(session, config, sources, systems)
    text = scaffold(
        file,
        sources=sources,
        description=description,
        markers=config.marker,
        proposal=proposal,
        systems=systems,
        system=config.system,
        max_tokens=config.max_tokens or Behavior.model_fields["max_tokens"].default,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    markers = [*config.marker, *(marker.text for marker in (proposal.markers if proposal else ()))]
    data = {"file": str(file), "markers": markers, "proposal": None if proposal is None else proposal.to_json()}
    return Outcome(data=data, shown=tuple(_shown(file, markers, proposal)))


def _systems(
    prompts: str | None, target: str | None, baseline: str | None, config: RunConfig
) -> tuple[str, str] | None:
    if prompts is None and target is None and baseline is None:
        return None
    if prompts is None or target is None or baseline is None or config.target or config.baseline:
        raise InputError(
            "a contrast of two system prompts needs --prompts, --target-system and --baseline-system",
            hint="give all three, and neither --target nor --baseline",
        )
    return target, baseline


def _sources(config: RunConfig, prompts: str | None) -> dict[str, Source]:
    from excise.behaviors import Source

    given = {"prompts": prompts} if prompts else {"target": config.target, "baseline": config.baseline}
    if len({location is None for location in given.values()}) > 1:
        raise InputError("--target and --baseline go together", hint="give both, or neither")
    return {
        side: Source(location=location, column=config.column, template=config.template)
        for side, location in given.items()
        if location is not None
    }


def _propose(
    session: Session, config: RunConfig, sources: dict[str, Source], systems: tuple[str, str] | None
) -> Proposal:
    """What separates the model's responses on the fit split, checked on the tune split; the report's are not read."""
    from excise.behaviors import SplitSizes
    from excise.behaviors.markers import propose_markers
    from excise.model.generate import generate

    behavior = _behavior(config, sources, systems)
    splits = behavior.splits(SplitSizes(*config.splits), seed=config.seed, offline=config.offline)
    model = session.load_model(config)

    def answered(prompts: tuple[str, ...]) -> list[tuple[str, str]]:
        responses = generate(
            model,
            prompts,
            system=behavior.system,
            thinking=behavior.thinking,
            max_tokens=behavior.max_tokens,
            batch_size=config.batch_size,
            progress=session.progress,
        )
        texts = [each.text[model.template.answer_start(each.text) :] for each in responses]
        return list(zip(map(str, prompts), texts, strict=True))

    fit, unseen = ((answered(each.target), answered(each.baseline)) for each in (splits.fit, splits.tune))
    target, baseline = ([text for _, text in side] for side in unseen)
    return propose_markers(*fit, held_out=(target, baseline))


def _behavior(config: RunConfig, sources: dict[str, Source], systems: tuple[str, str] | None) -> Behavior:
    """A behavior of these prompts that nothing would ever show."""
    from excise.behaviors import Behavior

    if systems is not None:
        target, baseline = (sources["prompts"].model_copy(update={"system": system}) for system in systems)
    else:
        target, baseline = sources["target"], sources["baseline"]
    found = Behavior.from_files(target, baseline, markers=[_PLACEHOLDER], system=config.system)
    changed = found.with_options(
        thinking=config.thinks, max_tokens=config.max_tokens, near_duplicates=config.near_duplicates
    )
    return changed.model_copy(update={"paired": systems is not None})


def _shown(file: Path, markers: list[str], proposal: Proposal | None) -> list[RenderableType]:
    shown: list[RenderableType] = []
    if proposal is not None and proposal.markers:
        table = plain_table("target", "baseline", "marker", right=(0, 1))
        for marker in proposal.markers:
            table.add_row(f"{marker.target:.0%}", f"{marker.baseline:.0%}", marker.text)
        table.add_row(f"{proposal.target:.0%}", f"{proposal.baseline:.0%}", "(any of them)")
        shown += [
            line("proposed from the model's responses; shares of held-out ones that hold each:\n"),
            table,
            line(""),
        ]
    elif proposal is not None:
        shown.append(line("no phrase tells the responses of the two sides apart: name markers yourself"))
    shown.append(line(f"written: {file}"))
    then = "check it" if markers else "write markers into it, then check it"
    return [*shown, line(f"{then}: excise behaviors validate {file}")]
