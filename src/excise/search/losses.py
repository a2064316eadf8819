"""What a polish minimises, on micro-batches of rows.

    answer      −log p of a response without the behavior, mean over its last tokens (cross-entropy, in nats)
    onset       softplus(log-odds that the behavior begins here + margin)
    divergence  KL(base‖edited) at the first response token, plus the mean over the tokens of the base model's response

Each is a sum over rows, divided by how many rows the whole step has, so that micro-batches add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from excise.activations.port_statistics import Exchange
from excise.evaluation import Onset, Reference
from excise.model.forward import TokenModel, continuation_logits, last_logits, pad_id, pad_left

ONSET_MARGIN = 2.0


def answer_loss(
    model: TokenModel, rows: Sequence[Exchange], *, window: int, onset: Onset | None = None
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"] | None]:
    """Cross-entropy of each row's last `window` response tokens.

    onset  where given, also how far the behavior is from being unlikely as the first of those tokens, in the same pass
    """
    prompts = [(*row.prompt, *row.response[:-window]) for row in rows]
    found = continuation_logits(model, prompts, [row.response[-window:] for row in rows], gradients=True)
    mask = found.mask.to(found.logits.device)
    chosen = found.tokens.to(found.logits.device)[..., None]
    logits = found.logits.float()
    surprise = logits.logsumexp(dim=-1) - logits.gather(-1, chosen)[..., 0]
    answer = (surprise * mask).sum(dim=-1) / mask.sum(dim=-1)
    if onset is None:
        return answer, None
    first = found.mask.int().argmax(dim=-1).to(logits.device)
    return answer, _likely(logits[torch.arange(len(first), device=logits.device), first], onset.tokens)


def onset_loss(model: TokenModel, onset: Onset, indices: Sequence[int]) -> Float[Tensor, " row"]:
    """How far the behavior is from being unlikely where the base model would begin it."""
    batch = pad_left([onset.rows[index] for index in indices], pad_id(model), model.device)
    return _likely(last_logits(model, batch, 1, gradients=True)[:, -1].float(), onset.tokens)


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
        gap = torch.where(base > -torch.inf, base - edited, 0.0)
        by_token = (base.exp() * gap).sum(dim=-1)
        first.append(by_token[0])
        sequence.append(by_token.mean())
    return torch.stack(first), torch.stack(sequence)


def _likely(logits: Float[Tensor, "row vocab"], tokens: Sequence[int]) -> Float[Tensor, " row"]:
    index = torch.tensor(tokens, device=logits.device)
    rest = logits.index_fill(1, index, -torch.inf)
    return softplus(logits[:, index].logsumexp(dim=-1) - rest.logsumexp(dim=-1) + ONSET_MARGIN)
