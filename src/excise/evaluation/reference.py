"""What an edit changes on prompts where nothing should change: divergence from the base model.

KL is KL(base‖edited) in nats, in fp32 from raw logits over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from excise.behaviors import Behavior
from excise.errors import PromptError
from excise.evaluation.statistics import Summary
from excise.evaluation.storage import TensorStore
from excise.model.forward import (
    TokenModel,
    continuation_logits,
    log_softmax_chunks,
    rows_that_fit,
    run_in_batches,
)
from excise.model.generate import Response, TextModel, generate_from_tokens
from excise.progress import Progress, silent


@dataclass(frozen=True)
class Divergence:
    """How far the live edit moves the model from the base model, over the base model's own greedy continuations.

    first             KL at the first response token, per prompt (what others report as "the KL")
    sequence          mean KL over the continuation's tokens, per prompt
    top1              share of continuation tokens that are still the most likely one
    perplexity_ratio  perplexity of the continuations, edited over base; 1 means unchanged
    """

    first: Summary
    sequence: Summary
    top1: float
    perplexity_ratio: float

    def to_json(self) -> dict[str, Any]:
        """`kl_first`, `kl_sequence`, `top1` and `perplexity_ratio`."""
        return {
            "kl_first": dict(self.first.to_json()),
            "kl_sequence": dict(self.sequence.to_json()),
            "top1": self.top1,
            "perplexity_ratio": self.perplexity_ratio,
        }


@dataclass(frozen=True)
class _Tokens:
    """Per continuation token, prompt after prompt."""

    kl: Float[Tensor, " token"]
    same_top: Bool[Tensor, " token"]
    loss_base: Float[Tensor, " token"]
    loss_edited: Float[Tensor, " token"]


class Reference:
    """The base model's continuations of some prompts and its logits on them: measured once, compared with often.

    The logits are kept as the model made them, so an edit that changes nothing has a divergence of exactly 0.

    prompts    token ids of the rendered prompts
    responses  the base model's greedy responses (at most `tokens` tokens each)
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Response],
        logits: TensorStore,
        places: dict[int, int],
        batch_size: int,
    ) -> None:
        self.prompts = tuple(tuple(row) for row in prompts)
        self.responses = tuple(responses)
        self._logits = logits
        self._places = places
        self._batch_size = batch_size

    @classmethod
    def measure(
        cls,
        model: TextModel,
        prompts: Sequence[str],
        behavior: Behavior,
        *,
        tokens: int = 32,
        batch_size: int | None = None,
        memory: int = 2 << 30,
        progress: Progress = silent,
    ) -> Reference:
        """Measure the base model; call it with no edit live.

        tokens  length of the continuations at most
        memory  bytes of logits kept in memory; what goes beyond is kept in temporary files

        Raises `PromptError` for no prompts, `DiskFullError`, `ModelError`.
        """
        if not prompts:
            raise PromptError("no baseline prompts to compare on", hint="give at least one baseline prompt")
        rows = model.template.encode(prompts, system=behavior.system, thinking=behavior.thinking)
        responses = generate_from_tokens(model, rows, max_tokens=tokens, batch_size=batch_size, progress=progress)
        continuations = [response.tokens for response in responses]
        longest = max(len(row) for row in rows) + tokens
        size = batch_size or rows_that_fit(model, tokens=longest, positions=tokens)
        store = TensorStore(memory)
        places: dict[int, int] = {}

        def keep(indices: list[int]) -> None:
            found = continuation_logits(model, rows, continuations, rows=indices)
            for row, index in enumerate(indices):
                places[index] = store.append(found.logits[row][found.mask[row]])

        run_in_batches(
            model, _joined(rows, continuations), keep, batch_size=size, progress=progress, label="base model"
        )
        return cls(rows, responses, store, places, size)

    def logits(self, index: int) -> Float[Tensor, "token vocab"]:
        """The base model's raw logits along the response to one prompt, wherever they are kept."""
        return self._logits[self._places[index]]

    def compare(self, model: TokenModel, *, progress: Progress = silent) -> Divergence:
        """The divergence with whatever edit is live: one forward pass over prompts and continuations."""
        continuations = [response.tokens for response in self.responses]

        def work(indices: list[int]) -> _Tokens:
            found = continuation_logits(model, self.prompts, continuations, rows=indices)
            base = torch.cat([self._logits[self._places[index]].to(found.logits.device) for index in indices])
            return _compare_tokens(base, found.logits[found.mask], found.tokens[found.mask])

        parts = run_in_batches(
            model,
            _joined(self.prompts, continuations),
            work,
            batch_size=self._batch_size,
            progress=progress,
            label="divergence",
        )
        order = [index for indices, _ in parts for index in indices]
        return _summarise([tokens for _, tokens in parts], [len(continuations[index]) for index in order])


def _joined(prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[*prompt, *continuation] for prompt, continuation in zip(prompts, continuations, strict=True)]


def _compare_tokens(
    base: Float[Tensor, "token vocab"], edited: Float[Tensor, "token vocab"], tokens: Int[Tensor, " token"]
) -> _Tokens:
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for part, log_base in log_softmax_chunks(base):
        log_edited = edited[part].float().log_softmax(dim=-1)
        chosen = tokens[part, None]
        # A token the base model rules out (−inf) adds nothing; the difference alone would be NaN.
        gap = torch.where(log_base > -torch.inf, log_base - log_edited, 0.0)
        columns.append(
            (
                (log_base.exp() * gap).sum(dim=-1).clamp(min=0.0),
                base[part].argmax(dim=-1) == edited[part].argmax(dim=-1),
                -log_base.gather(-1, chosen)[:, 0],
                -log_edited.gather(-1, chosen)[:, 0],
            )
        )
    kl, same, loss_base, loss_edited = (torch.cat(column).cpu() for column in zip(*columns, strict=True))
    return _Tokens(kl, same, loss_base, loss_edited)


def _summarise(parts: Sequence[_Tokens], lengths: Sequence[int]) -> Divergence:
    by_prompt = torch.cat([part.kl for part in parts]).split(list(lengths))
    first = torch.stack([kl[0] for kl in by_prompt])
    sequence = torch.stack([kl.mean() for kl in by_prompt])
    same = torch.cat([part.same_top for part in parts]).double().mean().item()
    loss = torch.cat([part.loss_edited.double() - part.loss_base.double() for part in parts]).mean().item()
    return Divergence(Summary.of(first), Summary.of(sequence), same, exp(min(loss, 700.0)))
