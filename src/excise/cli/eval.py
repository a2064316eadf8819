"""`excise eval`: any two models, and an edit, on any behaviors, by the same ruler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from excise.cli.comparisons import comparison_lines, positions_table, strata_tables
from excise.cli.options import command, settings
from excise.cli.session import Outcome, Session
from excise.cli.tables import heading, line, score_table
from excise.config import RunConfig
from excise.errors import InputError, OutputExistsError

if TYPE_CHECKING:
    from excise.compare import Measured, Ruler, Subject

_TAKES = (
    *settings("model", "data", but=("allow_partial", "force", "behavior", "shown_only")),
    "seed",
    "scorer_module",
    "score",
)
_FILES = ("eval.json", "eval.html")


@command("eval", takes=_TAKES)
def evaluate(
    session: Session,
    config: RunConfig,
    behavior: Annotated[
        list[str] | None,
        typer.Option("--behavior", help="What to measure: a name or a TOML file (repeatable). Default: refusal."),
    ] = None,
    edit: Annotated[Path | None, typer.Option("--edit", help="Score MODEL with this edit live, too.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Score this model too, by its distance from MODEL.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Prompts to use: fit, tune, select or report.")] = "report",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write eval.json, eval.html and all responses to this directory.")
    ] = None,
) -> Outcome:
    """Measure how often MODEL shows behaviors, and what an edit, or another model, changes: side by side, tested.

    Whatever made the other model, it is measured on the same prompts, with the same scorers.
    """
    from excise.behaviors import SPLITS
    from excise.compare import AGAINST, EDITED, Ruler
    from excise.edit import Edit
    from excise.evaluation import load_scorers, request_each
    from excise.evaluation.baseline import Baselines

    load_scorers(config.scorer_module)
    labellers = request_each(config.score)
    chosen = next((name for name in SPLITS if name == split), None)
    if chosen is None:
        raise InputError(f"unknown split '{split}'", hint=f"one of {', '.join(SPLITS)}")
    _check_out(out)
    change = None if edit is None else Edit.load(edit)
    subjects = _subjects(config, behavior or [config.behavior])
    ruler = Ruler(
        split=chosen,
        tokens=config.report_tokens,
        batch_size=config.batch_size,
        seed=config.seed,
        labellers=labellers,
        baselines=Baselines.shared(out),
        progress=session.progress,
    )
    model = session.load_model(config)
    directory = _run_of(edit) or out
    measured = ruler.begin(model, subjects)
    for each in measured:
        ruler.read(each, model, directory=directory, edit=change, against=against)
    if change is not None:
        ruler.add(measured, EDITED, model, change)
    if against is not None:
        del model  # one model in memory at a time
        ruler.add(measured, AGAINST, session.load_model(config, name=against))
    data = _data(config, edit, against, {each.subject.name: ruler.to_json(each) for each in measured})
    if out is not None:
        _write(out, data, measured, ruler)
    return Outcome(data=data, shown=tuple(_shown(data, out)))


def _subjects(config: RunConfig, names: Sequence[str]) -> list[Subject]:
    """Every behavior, with thinking on as well where both are asked for."""
    from excise.behaviors import Behavior, SplitSizes
    from excise.compare import Subject

    found = []
    for name in dict.fromkeys(names):
        behavior = Behavior.from_config(config.model_copy(update={"behavior": name}))
        splits = behavior.splits(SplitSizes(*config.splits), seed=config.seed, offline=config.offline)
        found.append(Subject(behavior.name, behavior, splits))
        if config.thinking == "both":
            thinking = behavior.with_options(thinking=True)
            found.append(Subject(f"{behavior.name}, thinking", thinking, splits))
    return found


def _run_of(edit: Path | None) -> Path | None:
    """The directory of the run that an edit file lies in."""
    folders = [] if edit is None else list(edit.resolve().parents[:2])
    return next((folder for folder in folders if (folder / "manifest.json").is_file()), None)


def _check_out(out: Path | None) -> None:
    """Refuse a directory that holds anything but an earlier comparison."""
    if out is None or not out.exists():
        return
    if not out.is_dir():
        raise OutputExistsError(f"{out} is a file", hint="choose another directory: --out DIR")
    if any(out.iterdir()) and not any((out / name).exists() for name in (*_FILES, "baselines", "seal.json")):
        raise OutputExistsError(f"{out} holds something else", hint="choose another directory: --out DIR")


def _data(
    config: RunConfig, edit: Path | None, against: str | None, behaviors: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """All that was measured; what is said of the first behavior is at the top as well."""
    from excise.runs import versions

    first = next(iter(behaviors.values()))
    return {
        "model": config.model,
        "edit": None if edit is None else str(edit),
        "against": against,
        **{name: first[name] for name in ("behavior", "split", "splits", "scores")},
        "behaviors": behaviors,
        "seed": config.seed,
        "versions": versions(),
    }


def _write(out: Path, data: dict[str, Any], measured: Sequence[Measured], ruler: Ruler) -> None:
    from excise.report import write_evaluation
    from excise.runs import write_json

    for number, each in enumerate(measured):
        ruler.save(each, out / f"responses-{number:02d}.jsonl")
    write_json(out / "eval.json", data)
    write_evaluation(data, out)


def _shown(data: dict[str, Any], out: Path | None) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for name, found in data["behaviors"].items():
        notes: dict[str, Text] = {}
        shown += [heading(f"{name} ({found['split']} split)"), score_table(found["scores"])]
        for pair in found["comparisons"]:
            *compared, note = comparison_lines(pair, f"{pair['first']} to {pair['second']}")
            shown += compared
            notes.setdefault(note.plain, note)
        shown += notes.values()
        shown += [positions_table(found["scores"]), *strata_tables(found["scores"])]
        if found["seal"] is not None:
            shown.append(line(found["seal"]["note"]))
    if out is not None:
        shown.append(line(f"\nsee {out / 'eval.html'}"))
    return shown
