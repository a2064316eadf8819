"""`excise eval`: how often a model shows a behavior, and what an edit changed beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excise.cli.options import command, settings
from excise.cli.session import Outcome, Session
from excise.cli.tables import score_table
from excise.config import RunConfig
from excise.errors import InputError

if TYPE_CHECKING:
    from excise.behaviors import Behavior, Split, Splits
    from excise.edit import Edit
    from excise.evaluation import Reference
    from excise.model import EditableModel


@command(
    "eval", takes=(*settings("model", "data", but=("allow_partial", "force", "shown_only")), "seed", "scorer_module")
)
def evaluate(
    session: Session,
    config: RunConfig,
    edit: Annotated[Path | None, typer.Option("--edit", help="Score MODEL with this edit live, too.")] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Score this model too, by its distance from MODEL.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Prompts to use: fit, tune, select or report.")] = "report",
) -> Outcome:
    """Measure how often MODEL shows the behavior, and what an edit, or another model, changes."""
    from excise.behaviors import SPLITS, Behavior, SplitSizes
    from excise.edit import Edit
    from excise.evaluation import Reference, load_scorers

    load_scorers(config.scorer_module)
    chosen = next((name for name in SPLITS if name == split), None)
    if chosen is None:
        raise InputError(f"unknown split '{split}'", hint=f"one of {', '.join(SPLITS)}")
    behavior = Behavior.from_config(config)
    splits = behavior.splits(SplitSizes(*config.splits), seed=config.seed, offline=config.offline)
    change = None if edit is None else Edit.load(edit)
    model = session.load_model(config)
    reference = Reference.measure(
        model, splits[chosen].baseline, behavior, batch_size=config.batch_size, progress=session.progress
    )

    def score(subject: EditableModel, change: Edit | None) -> dict[str, Any]:
        return _score(session, config, subject, behavior, splits, chosen, reference, change)

    scores = {"model": score(model, None)}
    if change is not None:
        scores["edited"] = score(model, change)
    if against is not None:
        del model  # one model in memory at a time
        scores["against"] = score(session.load_model(config, name=against), None)
    data = {
        "model": config.model,
        "behavior": behavior.name,
        "split": split,
        "splits": splits.sizes(),
        "edit": None if edit is None else str(edit),
        "against": against,
        "scores": scores,
    }
    return Outcome(data=data, shown=(score_table(scores),))


def _score(
    session: Session,
    config: RunConfig,
    model: EditableModel,
    behavior: Behavior,
    splits: Splits,
    split: Split,
    reference: Reference,
    edit: Edit | None,
) -> dict[str, Any]:
    from excise.evaluation import evaluate as measure

    scores = measure(
        model,
        behavior,
        edit=edit,
        split=split,
        splits=splits,
        reference=reference,
        batch_size=config.batch_size,
        progress=session.progress,
    )
    return scores.to_json()
