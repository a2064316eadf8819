"""What a polish learns from: on the fit split, how the base model answers, and how it would without the behavior.

Every text is the model's own. No other split is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from excise.activations.port_statistics import Exchange
from excise.behaviors import Behavior, PromptSet
from excise.edit import Edit
from excise.evaluation import Reference, behavior_rate
from excise.model import EditableModel
from excise.model.generate import generate_from_tokens
from excise.model.onset import onset_token
from excise.progress import Progress, silent

WINDOW = 24
"""Tokens of a response that are learned from: the last ones up to this many after the behavior would have begun."""

MOST_TOKENS = 96


@dataclass(frozen=True)
class Lessons:
    """The base model on the fit split.

    target     prompts whose response shows the behavior, with that response; `focus` is where it begins
    shown      whether there are any: where not, `target` is all prompts, as if the behavior began at once
    names      those prompts as text
    baseline   baseline prompts, and in turn with them those to keep, with the base model's response: all that an edit
               must leave as it is
    reference  the base model's logits on those
    """

    target: tuple[Exchange, ...]
    shown: bool
    names: tuple[str, ...]
    baseline: tuple[Exchange, ...]
    reference: Reference

    @property
    def focus(self) -> int:
        """Where the behavior begins in the middle one of the responses that show it."""
        return round(median(each.focus for each in self.target))


def learn(
    model: EditableModel,
    behavior: Behavior,
    prompts: PromptSet,
    *,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Lessons:
    """Ask the base model, which must have no edit live."""
    found = behavior_rate(
        model,
        prompts.target,
        behavior,
        max_tokens=max_tokens,
        batch_size=batch_size,
        stop_early=True,
        progress=progress,
    )
    encoded = model.template.encode(prompts.target, system=behavior.system, thinking=behavior.thinking)
    inside = model.template.opens_thinking(thinking=behavior.thinking)
    target, names = [], []
    for prompt, text, response in zip(encoded, prompts.target, found.responses, strict=True):
        place = onset_token(response, behavior, model.template, inside=inside)
        if place is not None:
            target.append(Exchange(tuple(prompt), response.tokens[: place + WINDOW], place))
            names.append(text)
    shown = bool(target)
    if not shown:
        names = list(prompts.target)
        target = [
            Exchange(tuple(prompt), response.tokens[:WINDOW])
            for prompt, response in zip(encoded, found.responses, strict=True)
        ]
    middle = round(median(each.focus for each in target))
    reference = Reference.measure(
        model,
        prompts.mixed,
        behavior,
        tokens=min(middle + WINDOW, MOST_TOKENS),
        batch_size=batch_size,
        progress=progress,
    )
    baseline = [
        Exchange(prompt, response.tokens, min(middle, len(response.tokens) - 1))
        for prompt, response in zip(reference.prompts, reference.responses, strict=True)
    ]
    return Lessons(tuple(target), shown, tuple(names), tuple(baseline), reference)


def openings(
    model: EditableModel, lessons: Lessons, edit: Edit, *, batch_size: int | None = None, progress: Progress = silent
) -> list[Exchange]:
    """How responses begin under an edit that removes the behavior, good or not: the other half of the key tokens."""
    tokens = min(lessons.focus + WINDOW // 2, MOST_TOKENS)
    with model.edited(edit):
        responses = generate_from_tokens(
            model,
            [each.prompt for each in lessons.target],
            max_tokens=tokens,
            batch_size=batch_size,
            progress=progress,
        )
    return [
        Exchange(each.prompt, response.tokens, min(lessons.focus, len(response.tokens) - 1))
        for each, response in zip(lessons.target, responses, strict=True)
    ]


def answers(
    model: EditableModel,
    behavior: Behavior,
    lessons: Lessons,
    edits: Sequence[Edit],
    *,
    known: Sequence[Exchange] = (),
    max_tokens: int | None = None,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> list[Exchange]:
    """Responses without the behavior, where some edit gets one: of the first edit whose response is labelled "comply".

    edits  the one that changes least first
    known  answers from before; those prompts are not asked again
    """
    places = {each.prompt: index for index, each in enumerate(lessons.target)}
    found = {places[each.prompt]: each for each in known}
    for edit in edits:
        open_still = [index for index in range(len(lessons.names)) if index not in found]
        if not open_still:
            break
        with model.edited(edit):
            tried = behavior_rate(
                model,
                [lessons.names[index] for index in open_still],
                behavior,
                max_tokens=max_tokens,
                batch_size=batch_size,
                stop_early=True,
                progress=progress,
            )
        for index, response, label in zip(open_still, tried.responses, tried.labels, strict=True):
            if label == "comply":
                lesson = lessons.target[index]
                found[index] = Exchange(lesson.prompt, response.tokens[: lesson.focus + WINDOW], lesson.focus)
    return [found[index] for index in sorted(found)]
