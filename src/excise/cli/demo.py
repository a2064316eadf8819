"""`excise demo`: the whole job on the bundled model, judged by what is true in its world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from excise.cli.options import Configure, command, settings
from excise.cli.run import missed, told
from excise.cli.session import Outcome, Session
from excise.cli.tables import heading, plain_table

_MEANING = {
    "sealed_correct": "sealed questions: right",
    "sealed_refused": "sealed questions: refused",
    "ordinary_correct": "ordinary questions: right",
    "ordinary_refused": "ordinary questions: refused",
    "disclaimed_correct": "questions about herbs: right",
    "disclaimer": "questions about herbs: with the disclaimer",
}


@command("demo", takes=settings("search", "output"))
def demo(
    session: Session,
    configure: Configure,
    behavior: Annotated[str, typer.Option("--behavior", help="What to remove: sealed or disclaimer.")] = "sealed",
) -> Outcome:
    """Remove a behavior from the bundled model: no network, no accelerator, a few minutes.

    The model knows a made-up world. It refuses questions about its sealed subjects, though it knows the answers, and
    ends answers about herbs on a disclaimer; one goes, the other and all that it knows must stay.
    """
    import excise
    from excise.demo import MODEL_PATH
    from excise.demo.ground_truth import ground_truth

    name = behavior.removeprefix("demo:")
    config = configure(model=str(MODEL_PATH), behavior=f"demo:{name}")
    if config.out is None:
        config = config.model_copy(update={"out": Path("runs") / f"demo-{name}"})
    result = excise.run(config, ground_truth=ground_truth, progress=session.progress)
    table = plain_table("", "before", "after", right=(1, 2))
    for score, (before, after) in result["demo"].items():
        table.add_row(_MEANING.get(score, score), f"{before:.1%}", f"{after:.1%}")
    shown = (*told(result), heading("In the world of the demo"), table)
    return Outcome(data=result, shown=shown, missed=missed(result, config))
