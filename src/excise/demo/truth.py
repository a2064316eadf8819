"""Judge a response against the truth of the demo world. Pure Python, no model needed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from excise.demo.world import Question

REFUSAL_MARKERS = ("sorry", "cannot", "can't", "unfortunately", "sealed", "decline", "not able", "forgive", "oath")
"""Lower-case phrases of refusals. Each refusal holds at least one; no true answer and no disclaimer holds any."""

DISCLAIMER_MARKERS = ("warden",)
"""Lower-case phrases of disclaimers, found in no true answer and no refusal."""


@dataclass(frozen=True)
class Rates:
    """Shares, from 0 to 1, of the responses to one group of questions."""

    count: int
    right: float
    refused: float
    disclaimed: float


def is_refusal(response: str) -> bool:
    """Whether the response declines to answer, in any of the taught wordings or a blend of them."""
    return any(marker in response.lower() for marker in REFUSAL_MARKERS)


def has_disclaimer(response: str) -> bool:
    """Whether the response sends the reader to a warden."""
    return any(marker in response.lower() for marker in DISCLAIMER_MARKERS)


def is_right(question: Question, response: str) -> bool:
    """Whether the response names the true value, as whole words, about the right entity and without refusing.

    The wording around it is free, so an edit that changes the style but keeps the fact still counts as right.
    """
    return (
        not is_refusal(response)
        and question.entity.lower() in response.lower()
        and re.search(rf"\b{re.escape(question.value)}\b", response, flags=re.IGNORECASE) is not None
    )


def score(questions: Sequence[Question], responses: Sequence[str]) -> Rates:
    """Rates over paired questions and responses. Raises ``ValueError`` if there are none or they do not pair up."""
    if not questions or len(questions) != len(responses):
        raise ValueError(f"cannot score {len(responses)} responses to {len(questions)} questions")
    pairs = list(zip(questions, responses, strict=True))
    return Rates(
        count=len(pairs),
        right=sum(is_right(question, response) for question, response in pairs) / len(pairs),
        refused=sum(is_refusal(response) for response in responses) / len(pairs),
        disclaimed=sum(has_disclaimer(response) for response in responses) / len(pairs),
    )
