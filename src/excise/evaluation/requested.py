"""Scorers that run only when they are asked for by name: `NAME` or `NAME:ARGUMENT`, as in `--score`.

They cost more than what is always measured, or need something: a file, a package, another model. Adding one is adding a
file to `excise.evaluation.shipped`, or a module of your own (`--scorer-module`), with one line that registers it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from excise.errors import InputError
from excise.evaluation import registry
from excise.evaluation.labelling import Answers, label_all, labellers, labellers_for
from excise.evaluation.registry import Scorer, Subject
from excise.evaluation.responses import answers_in, target_responses

LABELLERS = "labellers"
"""The name under which all requested labellers run, as one scorer: they share the responses."""

Maker = Callable[[str], Scorer]


@dataclass(frozen=True)
class _Offer:
    make: Maker
    argument: str
    required: bool


_OFFERS: dict[str, _Offer] = {}


def offered(name: str) -> Callable[[Scorer], Scorer]:
    """Offer a scorer under `name`. It returns JSON values by key, which appear under the name it was asked for by."""

    def register(function: Scorer) -> Scorer:
        _offer(name, _Offer(lambda _: function, "", False))
        return function

    return register


def offered_with(name: str, argument: str, *, required: bool = True) -> Callable[[Maker], Maker]:
    """Offer what makes a scorer of an argument: `NAME:ARGUMENT`. It may refuse it with an `InputError`.

    argument  what it is, for the help: `FILE.jsonl`
    required  whether `NAME` alone is refused; else it gets an empty argument
    """

    def register(make: Maker) -> Maker:
        _offer(name, _Offer(make, argument, required))
        return make

    return register


def score_names() -> list[str]:
    """What can be asked for, as it is written: `perplexity:FILE`, `judge[:MODEL]`, and scorers of the user's own."""
    forms = [_form(name, offer.argument, offer.required) for name, offer in _OFFERS.items()]
    forms += [_form(name, argument, False) for name, argument in labellers().items()]
    return sorted({*forms, *registry.scorers()})


def scorer_named(text: str) -> Scorer:
    """The scorer of `NAME` or `NAME:ARGUMENT`: an offered one, a labeller, or one that is registered.

    What an offered scorer returns is under the very text it was asked for by: `perplexity:notes.txt`.

    Raises `InputError` for a name that is unknown, or an argument that is missing, not wanted, or cannot be used.
    """
    name, colon, argument = text.partition(":")
    if name in labellers():
        return partial(_label, [text])
    if name in _OFFERS:
        offer = _OFFERS[name]
        if (offer.required and not argument) or (colon and not offer.argument):
            raise InputError(f"'{text}' is not how that is asked for", hint=_form(name, offer.argument, offer.required))
        return partial(_nested, text, offer.make(argument))
    if text in registry.scorers():
        return registry.scorers()[text]
    raise InputError(f"there is no scorer '{name}'", hint=f"known: {', '.join(score_names())}")


def request_scorers(texts: Sequence[str]) -> tuple[str, ...]:
    """Have these scorers run with every `evaluate` of this process, and be known to `--rate-by` and `--damage-by`.

    All labellers become one scorer, with those that were requested before, so that each is compared with every other.
    Asking twice changes nothing. Returns the names they run under. Raises `InputError`.
    """
    chosen = [text for text in texts if text.partition(":")[0] in labellers()]
    found = {text: scorer_named(text) for text in texts if text not in chosen}
    for text in chosen:
        scorer_named(text)
    if chosen:
        before = registry.scorers().get(LABELLERS)
        earlier = before.args[0] if isinstance(before, partial) and before.func is _label else []
        found[LABELLERS] = partial(_label, list(dict.fromkeys([*earlier, *chosen])))
    for name, function in found.items():
        registry.replace(name, function)
    return tuple(found)


def request_each(texts: Sequence[str]) -> tuple[str, ...]:
    """`request_scorers` for those that are no labellers; returns the others, for `evaluate(..., labellers=…)`.

    Raises `InputError`, before anything is requested.
    """
    for text in texts:
        scorer_named(text)
    chosen = tuple(text for text in texts if text.partition(":")[0] in labellers())
    request_scorers([text for text in texts if text not in chosen])
    return chosen


@contextmanager
def asking(texts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """`request_each` inside the block; afterwards what was registered before."""
    before = registry.scorers()
    try:
        yield request_each(texts)
    finally:
        registry.restore(before)


def request_for_keys(keys: Sequence[str]) -> None:
    """Request what keys such as `judge.rate` or `-lm-eval:arc_easy.arc_easy.acc` are of, as far as that is on offer.

    Raises `InputError` for an argument that cannot be used.
    """
    known = {*_OFFERS, *labellers()} - registry.scorers().keys()
    for key in keys:
        path = key.removeprefix("-")
        name = max((name for name in known if path.startswith((f"{name}.", f"{name}:"))), key=len, default=None)
        if name is not None:
            request_scorers([_text_of(path, name)])


def _text_of(path: str, name: str) -> str:
    """The part of a key that is what a scorer is asked for by: up to a dot, of which an argument may hold several."""
    if path[len(name)] == "." or path.endswith(":"):
        return name
    argument = path[len(name) + 1 :]
    places = [place for place, character in enumerate(argument) if character == "."]
    files = [argument[:place] for place in places[::-1] if Path(argument[:place].partition(",")[0]).is_file()]
    shortest = argument[: places[0]] if places else argument
    return f"{name}:{files[0] if files else shortest}"


def answers_of_subject(subject: Subject, side: Literal["target", "keep"] = "target") -> Answers:
    """What labellers are given: the model's answers to the target prompts, or to those that were kept."""
    responses = target_responses(subject) if side == "target" else subject.keep_responses
    return Answers(
        behavior=subject.behavior,
        prompts=subject.prompts.target if side == "target" else subject.prompts.keep,
        texts=answers_in(responses, subject.model.template, subject.behavior),
        device=subject.model.device,
        batch_size=subject.batch_size,
        progress=subject.progress,
    )


def _nested(text: str, function: Scorer, subject: Subject) -> Mapping[str, Any]:
    return {text: function(subject)}


def _label(names: Sequence[str], subject: Subject) -> Mapping[str, Any]:
    chosen = labellers_for(subject.behavior, names)
    return label_all(answers_of_subject(subject), chosen).to_json()


def _form(name: str, argument: str, required: bool) -> str:
    if not argument:
        return name
    return f"{name}:{argument}" if required else f"{name}[:{argument}]"


def _offer(name: str, offer: _Offer) -> None:
    if name in _OFFERS:
        raise InputError(f"there is a scorer '{name}' already", hint="choose another name")
    _OFFERS[name] = offer
