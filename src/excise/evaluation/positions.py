"""Where in a response the behavior begins, and what the rate would be if fewer tokens were looked at.

Published rates depend on how many tokens were generated: what comes after the last one is not seen. Everything here is
counted on the same responses, each cut off at so many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from excise.behaviors import Behavior
from excise.evaluation.statistics import wilson
from excise.model.generate import Response
from excise.model.onset import onset_token, token_at
from excise.model.template import ChatTemplate

LOOKS = (30, 50, 100, 150, 512)
"""Tokens of an answer that are looked at, as in published evaluations."""

DELAYED = 50
"""A behavior that begins at this token of the answer or later is delayed."""

_EDGES = (0, 30, DELAYED, 100, 150)


@dataclass(frozen=True)
class Positions:
    """When the behavior is shown, over some responses.

    onsets  for each response, the token of the answer (what is thought before it is not counted) that begins the
            sentence which shows the behavior; None where none does
    tokens  that a response could have at most
    looks   how many responses show the behavior within so many tokens of the answer
    """

    onsets: tuple[int | None, ...]
    tokens: int
    looks: dict[int, int]

    @classmethod
    def of(
        cls, responses: Sequence[Response], behavior: Behavior, template: ChatTemplate, *, max_tokens: int
    ) -> Positions:
        """Locate the behavior in finished responses; nothing is generated.

        max_tokens  that the responses were generated with
        """
        inside = template.opens_thinking(thinking=behavior.thinking)
        onsets: list[int | None] = []
        begins: list[int] = []
        for response in responses:
            begin = token_at(response, template.answer_start(response.text, inside=inside), template)
            place = onset_token(response, behavior, template, inside=inside)
            begins.append(begin)
            onsets.append(None if place is None else max(place - begin, 0))
        looks = {
            look: _shown_within(look, responses, begins, onsets, behavior, template, inside=inside)
            for look in LOOKS
            if look < max_tokens
        }
        return cls(tuple(onsets), max_tokens, {**looks, max_tokens: sum(onset is not None for onset in onsets)})

    @property
    def delayed(self) -> int:
        """How many responses show the behavior, but not before token 50 of the answer."""
        return sum(onset is not None and onset >= DELAYED for onset in self.onsets)

    def to_json(self) -> dict[str, Any]:
        """`tokens`, `delayed`, `onset` (quantiles), `histogram` and `rate_by_tokens`, as JSON values.

        The histogram's rows are [from, to, count]; the last one has no end.
        """
        shown = np.array([onset for onset in self.onsets if onset is not None])
        edges = [*zip(_EDGES, [*_EDGES[1:], None], strict=True)]
        total = len(self.onsets)
        return {
            "tokens": self.tokens,
            "delayed": self.delayed,
            "onset": {
                "median": float(np.quantile(shown, 0.5)),
                "p95": float(np.quantile(shown, 0.95)),
                "max": int(shown.max()),
            }
            if len(shown)
            else None,
            "histogram": [
                [low, high, int(((shown >= low) & (shown < (np.inf if high is None else high))).sum())]
                for low, high in edges
            ],
            "rate_by_tokens": {
                str(look): {
                    "count": count,
                    "rate": count / total if total else 0.0,
                    "rate_interval": list(wilson(count, total)),
                }
                for look, count in self.looks.items()
            },
        }


def _shown_within(
    look: int,
    responses: Sequence[Response],
    begins: Sequence[int],
    onsets: Sequence[int | None],
    behavior: Behavior,
    template: ChatTemplate,
    *,
    inside: bool,
) -> int:
    """How many responses show the behavior when no more than `look` tokens of their answers are there."""
    longer = [index for index, begin in enumerate(begins) if len(responses[index].tokens) > begin + look]
    cut = template.decode_batch([responses[index].tokens[: begins[index] + look] for index in longer])
    whole = set(range(len(responses))) - set(longer)
    count = sum(onsets[index] is not None for index in whole)
    return count + sum(
        behavior.find_onset(text[template.answer_start(text, inside=inside) :]) is not None for text in cut
    )
