"""How much is generated, by what it is for.

Trials of a search are scored on as many tokens as the behavior asks for. What is chosen and reported has to hold for
longer responses too: behavior that is merely pushed back by some sentences is not gone.
"""

from __future__ import annotations

from excise.behaviors import Behavior

CONFIRM_TOKENS = 128
"""Of a response when the front is measured again on the select split, at least."""

REPORT_TOKENS = 512
"""Of a response to a target prompt in a report, unless it is told otherwise, or the behavior wants more."""

DRAWS = 3
"""Random directions that are tried as a control in a report; the first on all prompts."""

DRAWN_PROMPTS = 32
"""Prompts of each side that the further ones are tried on."""


def confirm_tokens(behavior: Behavior, given: int | None = None) -> int:
    """Tokens of a response when the front is confirmed; `given` is what the trials of the search had."""
    return max(CONFIRM_TOKENS, given or behavior.max_tokens)


def report_tokens(behavior: Behavior, given: int | None = None) -> int:
    """Tokens of a response to a target prompt in a report; `given` is what was asked for."""
    return given or max(REPORT_TOKENS, behavior.max_tokens)
