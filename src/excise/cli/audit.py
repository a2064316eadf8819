"""`excise audit`: how concentrated, hence how fragile, a behavior is in a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from excise.cli.options import command, settings
from excise.cli.session import Outcome, Session
from excise.cli.tables import heading, line, plain_table
from excise.config import RunConfig
from excise.errors import InputError, OutputExistsError

if TYPE_CHECKING:
    from excise.analysis import Audit
    from excise.behaviors import Behavior, Splits

_GROUPS = {
    "strength": "One direction, by strength:",
    "rank": "More directions at strength 1, by rank:",
    "role": "One direction out of one kind of writer:",
    "layers": "One direction out of some layers:",
    "layer": "One direction out of a single layer (rates estimated by prefill):",
}


@command("audit", takes=(*settings("model", "data", but=("force", "max_tokens")), "seed"))
def audit(
    session: Session,
    config: RunConfig,
    against: Annotated[
        str | None, typer.Option("--against", help="Audit this model too, on the same prompts, and compare.")
    ] = None,
    ranks: Annotated[str, typer.Option("--ranks", help="Sizes of the subspaces that are removed.")] = "1,2,4,8",
    strengths: Annotated[
        str, typer.Option("--strengths", help="Strengths of the first direction.")
    ] = "0.25,0.5,0.75,1,1.25,1.5",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write audit.json and audit.html to this directory.", show_default=False),
    ] = None,
) -> Outcome:
    """Measure how much a model pays, in KL, for losing a behavior: by rank, strength, layer and role.

    Nothing is baked. The score is the least first-token KL at which half of the behavior is gone: small where a single
    direction carries it, large where it is bound up with the rest (docs/audit.md).
    """
    from excise.behaviors import Behavior, SplitSizes

    if out is not None and out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file", hint="give a directory")
    tried = _numbers("ranks", ranks), _numbers("strengths", strengths)
    if any(each != int(each) for each in tried[0]):
        raise InputError(f"--ranks {ranks}", hint="ranks are whole numbers, such as 1,2,4")
    behavior = Behavior.from_config(config)
    splits = behavior.splits(SplitSizes(*config.splits), seed=config.seed, offline=config.offline)
    if against == config.model:
        raise InputError(f"{against} against itself", hint="give another model with --against")
    names = [config.model, *([against] if against is not None else [])]
    audits = {}
    missed: tuple[str, ...] = ()
    for name in names:
        found, doubts = _audited(session, config, name, behavior, splits, tried)
        audits[name] = found
        missed = (*missed, *doubts)
    comparison = _compared(audits) if against is not None else None
    measured = {name: found.to_json() for name, found in audits.items()}
    data = {"behavior": behavior.name, "splits": splits.sizes(), "models": measured, "comparison": comparison}
    shown = [piece for name in names for piece in _show(name, measured[name])]
    if comparison is not None:
        shown.append(line(f"\n{comparison['verdict']}"))
    if out is not None:
        from excise.report import write_audit

        shown.append(line("\nwritten: " + ", ".join(map(str, write_audit(data, out)))))
    return Outcome(data=data, shown=tuple(shown), missed=missed)


def _audited(
    session: Session,
    config: RunConfig,
    name: str,
    behavior: Behavior,
    splits: Splits,
    tried: tuple[Sequence[float], Sequence[float]],
) -> tuple[Audit, tuple[str, ...]]:
    """One model at a time in memory."""
    from excise.analysis import audit as measure

    other = None if name == config.model else name
    model = session.load_model(config, name=other, allow_partial=config.allow_partial)
    doubts = session.prove(model, config)
    found = measure(
        model,
        behavior,
        splits=splits,
        ranks=[int(each) for each in tried[0]],
        strengths=tried[1],
        seed=config.seed,
        batch_size=config.batch_size,
        progress=session.progress,
    )
    return found, doubts


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--{option} {text}", hint="give numbers with commas between, such as 1,2,4") from error


def _compared(audits: Mapping[str, Audit]) -> dict[str, Any]:
    """Which model pays more, by paired draws of the prompts."""
    from excise.analysis.audit import compare

    (one, first), (other, second) = audits.items()
    return compare(one, first, other, second)


def _show(name: str, found: Mapping[str, Any]) -> list[RenderableType]:
    place = found["source"]
    layer = "each layer's own" if place["layer"] is None else f"layer {place['layer']:g}"
    low, high = found["rate_interval"]
    shown: list[RenderableType] = [
        heading(name),
        line(
            f"shows the behavior on {100 * found['rate']:.1f} % of {found['prompts']} prompts ({100 * low:.1f} to "
            f"{100 * high:.1f} %); direction from position {place['position']}, {layer}"
        ),
        line(f"robustness     {_price(found['robustness'], found['robustness_interval'])} to lose half of it"),
        line(f"               {_nats(found['robustness_90'])} to lose nine tenths"),
        line(
            f"concentration  {_share(found['concentration'])} of what the largest subspace removes, one direction does"
        ),
        line(f"rank needed    {found['rank_needed'] or 'none of those tried'} for nine tenths at strength 1"),
    ]
    for group, title in _GROUPS.items():
        points = [each for each in found["points"] if each["group"] == group]
        if points:
            table = plain_table("", "left", "removed", "KL, first", "KL, sequence", right=range(1, 5))
            for each in points:
                rates = f"{100 * each['rate']:.1f} %", f"{100 * each['removed']:.0f} %"
                table.add_row(each["label"], *rates, f"{each['kl_first']:.3g}", f"{each['kl_sequence']:.3g}")
            shown += [heading(title), table]
    return shown


def _price(value: float | None, interval: Sequence[float | None]) -> str:
    return f"{_nats(value)} ({_nats(interval[0])} to {_nats(interval[1])})"


def _nats(value: float | None) -> str:
    return "more than any edit tried" if value is None else f"{value:.3g} nats"


def _share(value: float | None) -> str:
    return "unknown:" if value is None else f"{100 * value:.0f} %"
