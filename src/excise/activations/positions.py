"""Where in a prompt and its response residuals are taken.

Positions have names that mean the same for prompts of any length:

    -k        the k-th last token of the rendered prompt (-1: the last one, after which the response begins)
    +1        the first token of the response, once it has been read
    response  the mean over the first 16 tokens of the response
    onset     the last token before the sentence that shows the behavior: where the model decides to show it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from excise.errors import BehaviorError


@dataclass(frozen=True)
class Plan:
    """Which columns of a left-padded batch are read, and how they are averaged into positions.

    columns  column indices, per row; a row that needs fewer repeats one
    weights  of each of those columns in each position; the weights of a position sum to 1
    """

    columns: Int[Tensor, "row column"]
    weights: Float[Tensor, "row position column"]

    def take(self, stream: Float[Tensor, "row token hidden"]) -> Float[Tensor, "row position hidden"]:
        """The residuals of a batch at the positions, in fp32 on the stream's device; nothing else is kept."""
        columns = self.columns.to(stream.device)
        rows = torch.arange(len(columns), device=stream.device)[:, None]
        picked = stream[rows, columns].float()
        return self.weights.to(stream.device) @ picked


RESPONSE_TOKENS = 16
"""How many tokens of a response the position `response` averages over, at most."""


def plan_positions(
    positions: Sequence[str], prompt: Sequence[int], response: Sequence[int], onset: Sequence[int] | None = None
) -> Plan:
    """The plan for rows with these numbers of prompt and response tokens, padded on the left to the longest.

    onset  how many of a row's response tokens come before the onset; needed for the position `onset`

    A position before the first token of a short prompt is taken at its first token. Raises `BehaviorError` for an
    unknown position, or where one of the response is asked for and a row has none.
    """
    before = [0] * len(prompt) if onset is None else onset
    width = max(p + r for p, r in zip(prompt, response, strict=True))
    spans = [
        [_span(position, p, r, before_onset=b, offset=width - p - r) for position in positions]
        for p, r, b in zip(prompt, response, before, strict=True)
    ]
    most = [max(len(row[index]) for row in spans) for index in range(len(positions))]
    columns = torch.zeros(len(spans), sum(most), dtype=torch.long)
    weights = torch.zeros(len(spans), len(positions), sum(most))
    for row, row_spans in enumerate(spans):
        start = 0
        for index, span in enumerate(row_spans):
            columns[row, start : start + most[index]] = span.start
            columns[row, start : start + len(span)] = torch.arange(span.start, span.stop)
            weights[row, index, start : start + len(span)] = 1.0 / len(span)
            start += most[index]
    return Plan(columns, weights)


def response_tokens_needed(positions: Sequence[str], *, most: int) -> int:
    """How many tokens of the response the positions need: `most` for a mean over it, 1 for its first, else 0."""
    return most if "response" in positions else int("+1" in positions)


def _span(position: str, prompt: int, response: int, *, before_onset: int, offset: int) -> range:
    if position == "onset":
        column = offset + prompt + min(before_onset, response) - 1
        return range(column, column + 1)
    if position in ("+1", "response"):
        if response == 0:
            raise BehaviorError(
                f"the position '{position}' needs a response token", hint="generate at least one token per prompt"
            )
        start = offset + prompt
        return range(start, start + (1 if position == "+1" else min(response, RESPONSE_TOKENS)))
    if position.startswith("-") and position[1:].isdigit() and int(position) < 0:
        column = offset + max(prompt + int(position), 0)
        return range(column, column + 1)
    raise BehaviorError(f"unknown position '{position}'", hint="use '-1', '-2', …, '+1', 'response' or 'onset'")
