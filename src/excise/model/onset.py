"""Where in a response a behavior begins."""

from __future__ import annotations

from excise.behaviors import Behavior
from excise.model.generate import Response
from excise.model.template import ChatTemplate


def onset_token(response: Response, behavior: Behavior, template: ChatTemplate, *, inside: bool = False) -> int | None:
    """Index of the response token that begins the sentence which shows the behavior; None where none does.

    inside  the prompt ended within an open thinking segment
    """
    start = template.answer_start(response.text, inside=inside)
    character = behavior.find_onset(response.text[start:])
    if character is None:
        return None
    low, high = 0, len(response.tokens) - 1
    while low < high:
        middle = (low + high) // 2
        if len(template.decode(response.tokens[: middle + 1])) > start + character:
            high = middle
        else:
            low = middle + 1
    return low
