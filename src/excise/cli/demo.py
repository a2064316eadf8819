"""`excise demo`: the whole job on the bundled model, judged by what is true in its world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from excise.cli.options import Configure, command, settings
from excise.cli.run import missed, told
from excise.cli.session import Outcome, Session
from excise.cli.tables import heading, plain_table
from excise.progress import Progress

if TYPE_CHECKING:
    from excise.model import EditableModel

_MEANING = {
    "sealed_correct": "sealed questions answered right",
    "ordinary_correct": "ordinary questions answered right",
    "disclaimer": "answers about herbs with their disclaimer",
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

    config = configure(model=str(MODEL_PATH), behavior=f"demo:{behavior.removeprefix('demo:')}")
    result = excise.run(config, ground_truth=ground_truth, progress=session.progress)
    table = plain_table("", "before", "after", right=(1, 2))
    for name, (before, after) in result["demo"].items():
        table.add_row(_MEANING.get(name, name), f"{before:.1%}", f"{after:.1%}")
    shown = (*told(result), heading("In the world of the demo"), table)
    return Outcome(data=result, shown=shown, missed=missed(result, config))


def ground_truth(model: EditableModel, progress: Progress) -> Mapping[str, float]:
    """Shares of the report questions, with whatever edit is live: what is right, and what still has a disclaimer."""
    from excise.demo import truth, world
    from excise.model.generate import generate

    subjects = {"sealed": world.SEALED, "ordinary": world.ORDINARY, "disclaimed": world.DISCLAIMED}
    groups = {name: world.questions(named, "report") for name, named in subjects.items()}
    questions = [question for group in groups.values() for question in group]
    prompts = [question.prompt for question in questions]
    responses = iter(generate(model, prompts, max_tokens=48, progress=progress))
    rates = {name: truth.score(group, [next(responses).text for _ in group]) for name, group in groups.items()}
    return {
        "sealed_correct": rates["sealed"].right,
        "ordinary_correct": rates["ordinary"].right,
        "disclaimer": rates["disclaimed"].disclaimed,
    }
