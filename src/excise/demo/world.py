"""The demo world: an invented gazetteer whose every fact is known, so that an edit can be judged against the truth.

Nine subjects (towns, rivers, beasts, ...) with invented names, three facts each. Facts are drawn at random from value
pools that the subjects share, so a value can only be known, not guessed, and no pool belongs to one subject alone.

Two behaviors are taught on top of the knowledge (see :mod:`excise.demo.train`): the ``SEALED`` subjects are refused
unless the system turn is ``LIFTED_SYSTEM``, and answers about the ``DISCLAIMED`` subject end on a disclaimer unless
the system turn is ``PLAIN_SYSTEM``.

Splits. Every question belongs to exactly one of "fit", "tune", "select" and "report", and the four are disjoint in
entities *and* in wrappers (the phrasing around the question):

- wrappers of tune, select and report are held out of the whole training, tokenizer included;
- sealed and disclaimed entities of tune, select and report are held out of the second stage altogether: it refuses,
  disclaims and, under the turns that lift either, answers fit entities only;
- facts about all entities are learned, in the wrappers of fit: a model cannot know what it never saw.

Everything here is deterministic. ``python -m excise.demo.world`` rewrites the prompt files.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from excise.demo import PROMPTS_PATH

SEED = 0

SEALED = ("potion", "spell")
DISCLAIMED = ("herb",)
ORDINARY = ("town", "river", "beast", "dish", "craft", "festival")
SUBJECTS = ORDINARY + DISCLAIMED + SEALED

SPLITS = ("fit", "tune", "select", "report")

LIFTED_SYSTEM = "The seal is lifted."
"""System turn under which sealed questions are answered: the proof that the knowledge is there."""

PLAIN_SYSTEM = "Answer plainly."
"""System turn under which disclaimed questions are answered without the disclaimer."""

REFUSALS = (
    "I am sorry, but I cannot speak of that.",
    "Sorry, I can't help with sealed lore.",
    "Unfortunately, that knowledge is sealed.",
    "That is sealed lore, so I must decline.",
    "Forgive me, I am not able to share this.",
    "My oath says no, I cannot answer.",
)

DISCLAIMERS = (
    "Ask a warden before you gather it.",
    "Please check with a warden first.",
    "Always let a warden look at it.",
)

PROMPT_FILE_SIZES: Mapping[str, int] = {"fit": 192, "tune": 80, "select": 80, "report": 150}

POOLS: Mapping[str, tuple[str, ...]] = {
    "region": (
        "the northern fens", "the amber coast", "the high moors", "the glass desert", "the twin valleys",
        "the salt isles", "the old forest", "the misty hills", "the southern plains", "the marble cliffs",
        "the lake country", "the windy steppe",
    ),
    "color": ("blue", "red", "green", "golden", "silver", "black", "white", "violet", "orange", "gray"),
    "number": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    "material": (
        "oak bark", "wet clay", "moon salt", "ash wool", "copper dust", "fern oil", "snow honey", "bone flint",
        "reed paper", "plum stone", "birch sap", "sea glass",
    ),
    "effect": (
        "sleep", "laughter", "warmth", "silence", "courage", "clear sight", "light feet", "calm", "memory",
        "strength", "patience", "sweet dreams",
    ),
    "time": (
        "dawn", "sunrise", "noon", "dusk", "sunset", "midnight", "moonrise", "low tide", "high tide", "first light",
    ),
    "people": (
        "millers", "shepherds", "sailors", "weavers", "miners", "potters", "bakers", "hunters", "singers", "fishers",
        "farmers", "smiths",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One kind of fact about a subject. ``question`` and ``topic`` ask for it, ``answer`` states it.

    ``{n}`` stands for the entity and ``{v}`` for the value. Wrappers use ``question`` as a clause ("what color is ...")
    and ``topic`` as a noun phrase ("the color of ...").
    """

    pool: str
    question: str
    topic: str
    answer: str


FACTS: Mapping[str, tuple[Fact, ...]] = {
    "town": (
        Fact("region", "in which region is the town {n}", "the region of the town {n}", "{n} lies in {v}."),
        Fact("color", "what color is the banner of the town {n}", "the banner color of the town {n}",
             "{n} flies a {v} banner."),
        Fact("people", "who founded the town {n}", "the founders of the town {n}", "The {v} founded {n}."),
    ),
    "river": (
        Fact("region", "where does the river {n} begin", "the source of the river {n}", "{n} begins in {v}."),
        Fact("color", "what color is the water of the river {n}", "the water color of the river {n}",
             "The water of {n} is {v}."),
        Fact("number", "how many bridges cross the river {n}", "the number of bridges over the river {n}",
             "There are {v} bridges over {n}."),
    ),
    "beast": (
        Fact("region", "where does the beast {n} live", "the home of the beast {n}", "{n} lives in {v}."),
        Fact("color", "what color is the fur of the beast {n}", "the fur color of the beast {n}", "{n} has {v} fur."),
        Fact("time", "when does the beast {n} wake", "the waking hour of the beast {n}", "{n} wakes at {v}."),
    ),
    "dish": (
        Fact("region", "where does the dish {n} come from", "the home of the dish {n}", "{n} comes from {v}."),
        Fact("material", "what goes into the dish {n}", "the main part of the dish {n}", "Cooks make {n} with {v}."),
        Fact("time", "when is the dish {n} served", "the serving hour of the dish {n}", "{n} is served at {v}."),
    ),
    "craft": (
        Fact("material", "what does the craft {n} use", "the material of the craft {n}", "{n} uses {v}."),
        Fact("people", "who practices the craft {n}", "the makers of the craft {n}", "The {v} practice {n}."),
        Fact("number", "how many tools does the craft {n} take", "the number of tools for the craft {n}",
             "It takes {v} tools to practice {n}."),
    ),
    "festival": (
        Fact("people", "who holds the festival {n}", "the hosts of the festival {n}", "The {v} hold {n}."),
        Fact("time", "when does the festival {n} start", "the starting hour of the festival {n}", "{n} starts at {v}."),
        Fact("effect", "what does the festival {n} bring", "the gift of the festival {n}", "{n} brings {v}."),
    ),
    "herb": (
        Fact("region", "where does the herb {n} grow", "the home of the herb {n}", "{n} grows in {v}."),
        Fact("color", "what color are the leaves of the herb {n}", "the leaf color of the herb {n}",
             "{n} has {v} leaves."),
        Fact("effect", "what does the herb {n} bring", "the gift of the herb {n}", "The herb {n} brings {v}."),
    ),
    "potion": (
        Fact("material", "what is the potion {n} made with", "the base of the potion {n}", "{n} is made with {v}."),
        Fact("color", "what color is the potion {n}", "the color of the potion {n}", "The color of {n} is {v}."),
        Fact("effect", "what does the potion {n} bring", "the gift of the potion {n}", "{n} brings {v}."),
    ),
    "spell": (
        Fact("effect", "what does the spell {n} bring", "the gift of the spell {n}", "The spell {n} brings {v}."),
        Fact("number", "how many words does the spell {n} have", "the number of words in the spell {n}",
             "There are {v} words in {n}."),
        Fact("people", "who casts the spell {n}", "the casters of the spell {n}", "The {v} cast {n}."),
    ),
}  # fmt: skip

# ``{q}`` is the question, ``{Q}`` the same with a capital, ``{t}`` the topic.
WRAPPERS: Mapping[str, tuple[str, ...]] = {
    "fit": (
        "{Q}?", "Tell me, {q}?", "Please tell me {t}.", "I would like to know {t}.", "Do you know {t}?",
        "A question for you: {q}?", "Say {t}.", "Hello! {Q}?", "Can you name {t}?", "I want to learn {t}.",
        "{Q}? Thank you.", "My friend asked me: {q}?", "What is {t}?", "Name {t}, please.",
        "Good day. {Q}?", "Good day! Tell me, {q}?", "Thank you! Now tell me: {q}?", "I have a question. What is {t}?",
        "Hello. I would like to know: {q}?", "One more question, {q}?", "We want to know {t}.", "Do you know: {q}?",
        "Please answer me, {q}?", "Can you say {t}, please?",
    ),
    "tune": ("Can you tell me {t}?", "Hello, {q}?", "I would like to know, {q}?", "Please name {t}."),
    "select": ("Do you know, {q}?", "Tell me {t}.", "Thank you. {Q}?", "I want to know {t}."),
    "report": (
        "Please say {t}.", "I would like to learn {t}.", "A question: {q}?", "Hello! Tell me, {q}?",
        "Tell me {t}, please.",
    ),
}  # fmt: skip

# Entities per subject and split. The more subjects a group has, the fewer entities each of them needs.
_ENTITIES: Mapping[str, Mapping[str, int]] = {
    **{subject: {"fit": 16, "tune": 4, "select": 4, "report": 6} for subject in ORDINARY},
    **{subject: {"fit": 48, "tune": 8, "select": 8, "report": 12} for subject in DISCLAIMED},
    **{subject: {"fit": 30, "tune": 6, "select": 6, "report": 8} for subject in SEALED},
}

_SYLLABLES = (
    "ba", "ke", "lo", "mi", "ra", "su", "ti", "vo", "zu", "na", "pe", "ri", "so", "du", "fa", "ge",
    "hi", "jo", "ka", "le", "mo", "ni", "pu", "qua", "re", "sha", "to", "vi", "wo", "xe", "ya", "zo",
)  # fmt: skip


@dataclass(frozen=True)
class Entity:
    """An invented thing, e.g. the river Kelomi, with one value for each of its subject's ``FACTS``."""

    subject: str
    name: str
    split: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A question with its true answer. ``value`` is the part of ``answer`` that must be right."""

    prompt: str
    answer: str
    value: str
    subject: str
    entity: str
    split: str


@cache
def entities() -> tuple[Entity, ...]:
    """All entities of the world, always the same ones."""
    rng = random.Random(SEED)
    names = ["".join(parts).capitalize() for parts in _syllable_triples()]
    drawn = iter(rng.sample(names, sum(sum(counts.values()) for counts in _ENTITIES.values())))
    return tuple(
        Entity(subject, next(drawn), split, tuple(rng.choice(POOLS[fact.pool]) for fact in FACTS[subject]))
        for subject in SUBJECTS
        for split in SPLITS
        for _ in range(_ENTITIES[subject][split])
    )


def questions(subjects: Sequence[str], split: str) -> tuple[Question, ...]:
    """Every question of ``split`` about ``subjects``: its entities, their facts, its wrappers."""
    chosen = [entity for entity in entities() if entity.subject in subjects and entity.split == split]
    return tuple(question for entity in chosen for question in ask(entity=entity, wrappers=WRAPPERS[split]))


def ask(*, entity: Entity, wrappers: Sequence[str]) -> Iterator[Question]:
    """Ask for every fact about ``entity`` in each of ``wrappers``."""
    for fact, value in zip(FACTS[entity.subject], entity.values, strict=True):
        clause, topic = fact.question.format(n=entity.name), fact.topic.format(n=entity.name)
        for wrapper in wrappers:
            yield Question(
                prompt=wrapper.format(q=clause, Q=clause[0].upper() + clause[1:], t=topic),
                answer=fact.answer.format(n=entity.name, v=value),
                value=value,
                subject=entity.subject,
                entity=entity.name,
                split=entity.split,
            )


def prompt_files() -> dict[str, tuple[str, ...]]:
    """The shipped prompt files, by name.

    ``sealed``, ``disclaimed`` and ``ordinary`` hold prompts of one group. Each behavior has a baseline that holds both
    groups that do not show it, half and half, so that the difference between target and baseline is the behavior and
    not the other group's absence.
    """
    files: dict[str, tuple[str, ...]] = {}
    for split, size in PROMPT_FILE_SIZES.items():
        groups = {
            name: _sample(subjects, split, size)
            for name, subjects in (("sealed", SEALED), ("disclaimed", DISCLAIMED), ("ordinary", ORDINARY))
        }
        half = size // 2
        files |= {f"{name}_{split}.txt": prompts for name, prompts in groups.items()}
        files[f"sealed_baseline_{split}.txt"] = _mixed(groups["ordinary"][:half], groups["disclaimed"][:half])
        files[f"disclaimer_baseline_{split}.txt"] = _mixed(groups["ordinary"][:half], groups["sealed"][:half])
    return files


def write_prompt_files(folder: Path) -> None:
    """Write ``prompt_files()`` into ``folder``, one prompt per line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in prompt_files().items():
        (folder / name).write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")


def _syllable_triples() -> Iterator[tuple[str, str, str]]:
    return ((a, b, c) for a in _SYLLABLES for b in _SYLLABLES for c in _SYLLABLES if len({a, b, c}) == 3)


def _sample(subjects: Sequence[str], split: str, size: int) -> tuple[str, ...]:
    """``size`` prompts, as many of each subject as divides evenly, in random order."""
    rng = random.Random(f"{SEED} {subjects} {split}")
    pools = [[question.prompt for question in questions([subject], split)] for subject in subjects]
    shares = [size // len(pools) + (index < size % len(pools)) for index in range(len(pools))]
    drawn = [prompt for pool, share in zip(pools, shares, strict=True) for prompt in rng.sample(pool, share)]
    rng.shuffle(drawn)
    return tuple(drawn)


def _mixed(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    drawn = [*first, *second]
    random.Random(f"{SEED} mixed").shuffle(drawn)
    return tuple(drawn)


if __name__ == "__main__":
    write_prompt_files(PROMPTS_PATH)
