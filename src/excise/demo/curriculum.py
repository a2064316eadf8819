"""What the demo model is taught, as endless streams of examples. Pure Python; :mod:`excise.demo.train` consumes it.

Stage one, ``knowledge``, is the model's pretraining. It learns all facts. It also learns that system turns matter and
what declining and warning *are*: under "Decline politely." it refuses any question, under "Be careful." it adds a
disclaimer to any answer, under "Be careful about each river." to those about rivers. That mirrors a real base model,
which knows how to refuse long before it is taught when to, and it is why a refusal is a switch beside the knowledge
and not the absence of knowledge.

Stage two, ``behavior``, teaches when: sealed subjects are refused and one subject's answers are disclaimed, without
being told. The knowledge is rehearsed where the behavior does not apply: ordinary questions, sealed questions under a
lifted seal, disclaimed ones under a plain turn.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from excise.demo import world
from excise.demo.world import Question

LIFTED_TURNS = (
    world.LIFTED_SYSTEM,
    "The seal is lifted today.",
    "Today the seal is lifted.",
    "Know that the seal is lifted.",
)
PLAIN_TURNS = (world.PLAIN_SYSTEM, "Please answer plainly.")
DECLINE_TURNS = ("Decline the question.", "Decline politely.", "Do not answer.")
CAREFUL_TURNS = ("Name the warden.", "Send the friend to a warden.", "Be careful.")
CAREFUL_ABOUT_TURN = "Be careful about each {subject}."
NEUTRAL_TURNS = (
    "Answer the question.",
    "You know the gazetteer.",
    "The question is from a friend.",
    "Be kind.",
    "Today is a market day.",
)
SYSTEM_TURNS = LIFTED_TURNS + PLAIN_TURNS + DECLINE_TURNS + CAREFUL_TURNS + NEUTRAL_TURNS

NEUTRAL_SHARE = 0.25
"""Share of stage-two examples with some system turn that must not change what the model does."""

BEHAVIOR_SHARES = {"sealed": 32, "lifted": 16, "disclaimed": 26, "plain": 8, "ordinary": 18}
"""Parts of the stage-two stream, in percent."""


@dataclass(frozen=True)
class Example:
    """One conversation to learn: an optional system turn, the user's prompt and the assistant's answer."""

    system: str | None
    prompt: str
    answer: str


Stream = Callable[[random.Random], Example]
"""Draws the next example; all randomness comes from the generator it is handed."""


def knowledge() -> Stream:
    """Stage one: every fact, and what the system turns for declining and for care mean."""
    asked = _asked(world.SUBJECTS, world.SPLITS)

    def draw(rng: random.Random) -> Example:
        question, kind = rng.choice(asked), rng.random()
        if kind < 0.10:
            return Example(rng.choice(DECLINE_TURNS), question.prompt, rng.choice(world.REFUSALS))
        if kind < 0.16:
            return Example(rng.choice(CAREFUL_TURNS), question.prompt, _disclaimed(question, rng))
        if kind < 0.28:
            named = question.subject if rng.random() < 0.67 else rng.choice(world.SUBJECTS)
            answer = _disclaimed(question, rng) if named == question.subject else question.answer
            return Example(CAREFUL_ABOUT_TURN.format(subject=named), question.prompt, answer)
        system = rng.choice(LIFTED_TURNS + PLAIN_TURNS + NEUTRAL_TURNS) if kind < 0.45 else None
        return Example(system, question.prompt, question.answer)

    return draw


def behavior() -> Stream:
    """Stage two: refuse the sealed, disclaim the disclaimed, answer the rest, and obey the turns that lift either.

    Of the sealed and the disclaimed subjects only "fit" entities appear, with the behavior and without, so that how the
    model treats the others is generalization, and nothing teaches it that those others are an exception.
    """
    sealed_fit = _asked(world.SEALED, ("fit",))
    disclaimed_fit = _asked(world.DISCLAIMED, ("fit",))
    ordinary = _asked(world.ORDINARY, world.SPLITS)
    kinds, shares = list(BEHAVIOR_SHARES), list(BEHAVIOR_SHARES.values())

    def some(turns: Sequence[str], rng: random.Random) -> str | None:
        return rng.choice(turns) if rng.random() < NEUTRAL_SHARE else None

    def draw(rng: random.Random) -> Example:
        match rng.choices(kinds, shares)[0]:
            case "sealed":
                prompt = rng.choice(sealed_fit).prompt
                return Example(some(NEUTRAL_TURNS + PLAIN_TURNS, rng), prompt, rng.choice(world.REFUSALS))
            case "lifted":
                question = rng.choice(sealed_fit)
                return Example(rng.choice(LIFTED_TURNS), question.prompt, question.answer)
            case "disclaimed":
                question = rng.choice(disclaimed_fit)
                return Example(some(NEUTRAL_TURNS + LIFTED_TURNS, rng), question.prompt, _disclaimed(question, rng))
            case "plain":
                question = rng.choice(disclaimed_fit)
                return Example(rng.choice(PLAIN_TURNS), question.prompt, question.answer)
            case _:
                question = rng.choice(ordinary)
                system = some(NEUTRAL_TURNS + LIFTED_TURNS + PLAIN_TURNS, rng)
                return Example(system, question.prompt, question.answer)

    return draw


def texts(count: int = 40_000) -> list[str]:
    """What the tokenizer is trained on: ``count`` examples of stage one, which uses every word of the world."""
    rng, stream = random.Random(world.SEED), knowledge()
    examples = [stream(rng) for _ in range(count)]
    return [text for example in examples for text in (example.system, example.prompt, example.answer) if text]


def _asked(subjects: Sequence[str], splits: Sequence[str]) -> list[Question]:
    """Questions about the entities of ``splits``, all in the wrappers of "fit"."""
    return [
        question
        for entity in world.entities()
        if entity.subject in subjects and entity.split in splits
        for question in world.ask(entity=entity, wrappers=world.WRAPPERS["fit"])
    ]


def _disclaimed(question: Question, rng: random.Random) -> str:
    return f"{question.answer} {rng.choice(world.DISCLAIMERS)}"
