"""What a polish minimises, on micro-batches of rows.

    answer      −log p of a response without the behavior, mean over its last tokens (cross-entropy, in nats)
    behavior    softplus(log p of how the base model begins to show the behavior + margin): it must become unlikely, at
                whichever of its tokens that costs least
    divergence  KL(base‖edited) at the first response token, plus the mean over the tokens of the base model's response

Each is a sum over rows, divided by how many rows the whole step has, so that micro-batches add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from excise.activations.port_statistics import Exchange
from excise.evaluation import Reference
from excise.model.forward import TokenModel, continuation_logits

BEHAVIOR_TOKENS, BEHAVIOR_MARGIN = 8, 4.0
"""How many tokens must together become less likely than e⁻⁴."""

ANSWER_WINDOW = 16
"""Tokens of an answer that are learned from."""

SEQUENCE_WEIGHT = 6.0
"""Of the divergence over the response, against that of its first token."""


def answer_loss(model: TokenModel, rows: Sequence[Exchange], *, window: int) -> Float[Tensor, " row"]:
    """Cross-entropy of each row's last `window` response tokens."""
    odds, mask = _log_odds(
        model,
        [(*row.prompt, *row.response[:-window]) for row in rows],
        [row.response[-window:] for row in rows],
    )
    return (softplus(-odds) * mask).sum(dim=-1) / mask.sum(dim=-1)


def behavior_loss(model: TokenModel, rows: Sequence[Exchange]) -> Float[Tensor, " row"]:
    """How far each row's first tokens that show the behavior are from being unlikely.

    softplus of their common log-odds plus a margin: the gradient does not vanish where the model is quite certain.
    """
    odds, mask = _log_odds(
        model,
        [(*row.prompt, *row.response[: row.focus]) for row in rows],
        [row.response[row.focus : row.focus + BEHAVIOR_TOKENS] for row in rows],
    )
    surprise = (softplus(-odds) * mask).sum(dim=-1)
    together = -surprise - (-torch.expm1(-surprise)).clamp(min=1e-30).log()
    return softplus(together + BEHAVIOR_MARGIN)


def divergences(
    model: TokenModel, reference: Reference, indices: Sequence[int]
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """KL(base‖edited) in nats for each prompt: at the first token, and the mean over the response."""
    prompts = [reference.prompts[index] for index in indices]
    responses = [reference.responses[index].tokens for index in indices]
    found = continuation_logits(model, prompts, responses, gradients=True)
    first, sequence = [], []
    for row, index in enumerate(indices):
        base = reference.logits(index).to(found.logits.device).float().log_softmax(dim=-1)
        edited = found.logits[row, -len(base) :].float().log_softmax(dim=-1)
        by_token = divergence_by_token(base, edited)
        first.append(by_token[0])
        sequence.append(by_token.mean())
    return torch.stack(first), torch.stack(sequence)


def divergence_by_token(
    base: Float[Tensor, "*row token vocab"], edited: Float[Tensor, "*row token vocab"]
) -> Float[Tensor, "*row token"]:
    """KL(base‖edited) of log-probabilities, in nats."""
    gap = torch.where(base > -torch.inf, base - edited, 0.0)
    return (base.exp() * gap).sum(dim=-1)


def sequence_weights(mask: Bool[Tensor, "row token"]) -> Float[Tensor, "row token"]:
    """What each token of a response counts in the damage: the first 1, and all together `SEQUENCE_WEIGHT`."""
    weights = SEQUENCE_WEIGHT * mask.float() / mask.sum(dim=1, keepdim=True)
    first = mask & (mask.cumsum(dim=1) == 1)
    return weights + first


def _log_odds(
    model: TokenModel, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "row token"], Bool[Tensor, "row token"]]:
    """Log-odds of each response token, and where there are tokens; −log p is their negative's softplus."""
    found = continuation_logits(model, prompts, responses, gradients=True)
    logits, tokens = found.logits.float(), found.tokens.to(found.logits.device)[..., None]
    rest = logits.scatter(-1, tokens, -torch.inf).logsumexp(dim=-1)
    return logits.gather(-1, tokens)[..., 0] - rest, found.mask.to(logits.device)
