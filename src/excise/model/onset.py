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
    return token_at(response, start + character, template)


def token_at(response: Response, character: int, template: ChatTemplate) -> int:
    """Index of the response token that the character at this index of the text is in; the last one for the end."""
    if character == 0:
        return 0
    low, high = 0, max(len(response.tokens) - 1, 0)
    while low < high:
        middle = (low + high) // 2
        if len(template.decode(response.tokens[: middle + 1])) > character:
            high = middle
        else:
            low = middle + 1
    return low
