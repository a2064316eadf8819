"""The responses that scorers look at: generated once per edit where somebody did so already, else now."""

from __future__ import annotations

from collections.abc import Sequence

from excise.behaviors import Behavior
from excise.evaluation.rate import answer_of, behavior_rate
from excise.evaluation.registry import Subject
from excise.model.generate import Response
from excise.model.template import ChatTemplate


def target_responses(subject: Subject) -> tuple[Response, ...]:
    """The responses to the target prompts, in their order."""
    return subject.responses or _generated(subject, subject.prompts.target)


def baseline_responses(subject: Subject) -> tuple[Response, ...]:
    """The responses to the baseline prompts, in their order."""
    return subject.baseline_responses or _generated(subject, subject.prompts.baseline)


def answers_in(responses: Sequence[Response], template: ChatTemplate, behavior: Behavior) -> tuple[str, ...]:
    """The texts of responses without what the model thinks first, told by the tags of its own template.

    A response that never stops thinking has an empty answer.
    """
    inside = template.opens_thinking(thinking=behavior.thinking)
    return tuple(answer_of(response.text, template, inside=inside) for response in responses)


def _generated(subject: Subject, prompts: Sequence[str]) -> tuple[Response, ...]:
    return behavior_rate(
        subject.model,
        prompts,
        subject.behavior,
        max_tokens=subject.max_tokens,
        batch_size=subject.batch_size,
        progress=subject.progress,
    ).responses
