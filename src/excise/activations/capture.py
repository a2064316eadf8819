"""Residuals of prompts at chosen positions of every layer.

Forward hooks on the decoder layers pick the wanted tokens out of the residual stream as it passes; the stack of all
hidden states is never held, and the LM head runs only to choose the response tokens that some positions need. Where a
layer carries several streams per token, its residual is their mean (`excise.model.streams`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from excise.activations.positions import RESPONSE_TOKENS, plan_positions, response_tokens_needed
from excise.errors import BehaviorError
from excise.model import EditableModel
from excise.model.forward import Rows, forward, pad_id, pad_left, rows_that_fit, run_in_batches
from excise.model.generate import end_tokens, generate_from_tokens
from excise.model.streams import residuals_taken
from excise.progress import Progress, silent


@dataclass(frozen=True)
class Residuals:
    """The residual stream of some prompts after every layer, in fp32 on the CPU.

    values     one vector per prompt, position and layer
    positions  the names of the positions
    """

    values: Float[Tensor, "prompt position layer hidden"]
    positions: tuple[str, ...]


@dataclass(frozen=True)
class Responses:
    """Responses to some prompts: their tokens without the one that ends them, and how many precede the onset."""

    tokens: tuple[tuple[int, ...], ...]
    onsets: tuple[int, ...]


def capture_residuals(
    model: EditableModel,
    prompts: Sequence[str],
    positions: Sequence[str],
    *,
    system: str | None = None,
    thinking: bool = False,
    responses: Responses | None = None,
    winsorise: float | None = None,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Residuals:
    """Residuals of every prompt, in the order of the prompts.

    positions        see `excise.activations.positions`; those of the response are taken on the model's own greedy one
    responses        the model's own, where they are known; the position `onset` needs them, others generate their own
    winsorise        clamp the components of every vector to this quantile of their magnitudes (0.995, say), so that
                     massive activations do not dominate means; None leaves them

    Needs prompt × position × layer × hidden × 4 bytes; `stream_residuals` needs no more for many prompts than for one.
    Raises `BehaviorError` for an unknown position, `ModelError` where not even one prompt fits in memory.
    """
    kept: dict[int, Tensor] = {}

    def keep(indices: list[int], values: Tensor) -> None:
        kept.update(zip(indices, values, strict=True))

    rows = model.template.encode(prompts, system=system, thinking=thinking)
    known = responses or own_responses(model, rows, positions, batch_size=batch_size, progress=progress)
    stream_residuals(model, rows, known, positions, keep, winsorise=winsorise, batch_size=batch_size, progress=progress)
    return Residuals(torch.stack([kept[index] for index in range(len(rows))]), tuple(positions))


def stream_residuals(
    model: EditableModel,
    prompt_ids: Rows,
    responses: Responses,
    positions: Sequence[str],
    consume: Callable[[list[int], Tensor], None],
    *,
    winsorise: float | None = None,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> None:
    """Call `consume(row indices, values)` for batches of rows; `values` are fp32 (row, position, layer, hidden).

    A row's values are those that it has alone, whatever the architecture: rows are padded only where that changes
    nothing. Layers that are run in cycles give the residual of their last call.
    """
    rows = [[*prompt, *response] for prompt, response in zip(prompt_ids, responses.tokens, strict=True)]
    pad, layers, hidden = pad_id(model), list(model.layers), model.hidden

    def work(indices: list[int]) -> None:
        plan = plan_positions(
            positions,
            [len(prompt_ids[index]) for index in indices],
            [len(responses.tokens[index]) for index in indices],
            [responses.onsets[index] for index in indices],
        )
        batch = pad_left([rows[index] for index in indices], pad, model.device)
        with residuals_taken(layers, batch.input_ids, hidden, plan.take) as taken:
            forward(model, batch)
        values = torch.stack([vectors.cpu() for vectors in taken], dim=2)
        consume(indices, values if winsorise is None else winsorised(values, winsorise))

    size = batch_size or rows_that_fit(model, tokens=max(len(row) for row in rows))
    run_in_batches(model, rows, work, batch_size=size, progress=progress, label="activations")


def winsorised(values: Float[Tensor, "... hidden"], quantile: float) -> Float[Tensor, "... hidden"]:
    """Every vector with its components clamped to a quantile of their own magnitudes."""
    rank = min(max(round(quantile * values.shape[-1]), 1), values.shape[-1])
    limit = values.abs().kthvalue(rank, dim=-1, keepdim=True).values
    return values.clamp(min=-limit, max=limit)


def own_responses(
    model: EditableModel,
    rows: Rows,
    positions: Sequence[str],
    *,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Responses:
    """As many of the model's own greedy response tokens per rendered prompt as the positions need.

    Raises `BehaviorError` for the position `onset`: where it is, only the behavior knows (`excise.find`).
    """
    if "onset" in positions:
        raise BehaviorError("the position 'onset' needs responses", hint="give the model's own responses")
    needed = response_tokens_needed(positions, most=RESPONSE_TOKENS)
    if needed == 0:
        return Responses(tuple(() for _ in rows), (0,) * len(rows))
    responses = generate_from_tokens(model, rows, max_tokens=needed, batch_size=batch_size, progress=progress)
    ends = end_tokens(model)
    return Responses(tuple(tuple(without_end(response.tokens, ends)) for response in responses), (0,) * len(rows))


def without_end(tokens: Sequence[int], ends: frozenset[int]) -> list[int]:
    """The token that ends a response is no part of it, unless there is nothing else."""
    return list(tokens[:-1] if len(tokens) > 1 and tokens[-1] in ends else tokens)
