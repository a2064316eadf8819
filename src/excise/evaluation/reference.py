"""What an edit changes on prompts where nothing should change: divergence from the base model.

KL is KL(base‖edited) in nats, in fp32 from raw logits over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from excise.behaviors import Behavior
from excise.edit import Edit
from excise.errors import PromptError
from excise.evaluation.statistics import Summary
from excise.evaluation.storage import TensorStore
from excise.model import EditableModel
from excise.model.forward import (
    TokenModel,
    continuation_logits,
    log_softmax_chunks,
    rows_that_fit,
    run_in_batches,
)
from excise.model.generate import Response, TextModel, generate_from_tokens
from excise.model.row_groups import Population
from excise.progress import Progress, silent


@dataclass(frozen=True)
class Divergence:
    """How far the live edit moves the model from the base model, over the base model's own greedy continuations.

    first             KL at the first response token, per prompt (what others report as "the KL")
    sequence          mean KL over the continuation's tokens, per prompt
    top1              share of continuation tokens that are still the most likely one
    perplexity_ratio  perplexity of the continuations, edited over base; 1 means unchanged
    first_each        what `first` sums up, in the order of the prompts (not part of `to_json`)
    sequence_each     the same for `sequence`
    """

    first: Summary
    sequence: Summary
    top1: float
    perplexity_ratio: float
    first_each: tuple[float, ...] = field(default=(), repr=False, compare=False)
    sequence_each: tuple[float, ...] = field(default=(), repr=False, compare=False)

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
    """Per continuation token, row after row."""

    kl: Float[Tensor, " token"]
    same_top: Bool[Tensor, " token"]
    loss_base: Float[Tensor, " token"]
    loss_edited: Float[Tensor, " token"]

    def split(self, lengths: Sequence[int]) -> tuple[_Tokens, ...]:
        """The tokens of each prompt on its own."""
        columns = (self.kl, self.same_top, self.loss_base, self.loss_edited)
        return tuple(_Tokens(*parts) for parts in zip(*(each.split(list(lengths)) for each in columns), strict=True))


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
        return self.compare_each(model, Population(1), progress=progress)[0]

    def compare_many(
        self, model: EditableModel, edits: Sequence[Edit], *, progress: Progress = silent
    ) -> list[Divergence]:
        """The divergence of each edit, measured in shared batches where that can be; the model is left as it was."""
        return model.measure_each(edits, lambda live: self.compare_each(model, live, progress=progress))

    def compare_each(
        self, model: TokenModel, population: Population, *, progress: Progress = silent
    ) -> list[Divergence]:
        """The divergence of each edit of a population that is live."""
        continuations = [response.tokens for response in self.responses]
        count = len(self.prompts)
        groups = population.groups(count)

        def work(indices: list[int]) -> tuple[_Tokens, ...]:
            prompts = [index % count for index in indices]
            with groups.rows(indices):
                found = continuation_logits(model, self.prompts, continuations, rows=prompts)
            base = torch.cat([self._logits[self._places[prompt]].to(found.logits.device) for prompt in prompts])
            tokens = _compare_tokens(base, found.logits[found.mask], found.tokens[found.mask])
            return tokens.split([len(continuations[prompt]) for prompt in prompts])

        by_row: dict[int, _Tokens] = {}
        for indices, tokens in run_in_batches(
            model,
            _joined(self.prompts, continuations) * len(population),
            work,
            batch_size=self._batch_size,
            progress=progress,
            label="divergence",
        ):
            by_row.update(zip(indices, tokens, strict=True))
        rows = [by_row[index] for index in range(len(groups))]
        return [_summarise(rows[start : start + count]) for start in range(0, len(rows), count)]


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


def _summarise(rows: Sequence[_Tokens]) -> Divergence:
    """Of the tokens of each prompt."""
    first = torch.stack([row.kl[0] for row in rows])
    sequence = torch.stack([row.kl.mean() for row in rows])
    same = torch.cat([row.same_top for row in rows]).double().mean().item()
    loss = torch.cat([row.loss_edited.double() - row.loss_base.double() for row in rows]).mean().item()
    return Divergence(
        Summary.of(first),
        Summary.of(sequence),
        same,
        exp(min(loss, 700.0)),
        tuple(first.tolist()),
        tuple(sequence.tolist()),
    )
