"""Greedy generation: a row leaves its batch once it has ended, or its caller has seen enough, and another joins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import nn

from excise.errors import InputError
from excise.model.agreement import logits_agree
from excise.model.decoding import Decoding
from excise.model.forward import (
    Rows,
    TokenModel,
    batches_by_length,
    last_logits,
    pad_left,
    padding_is_exact,
    probe_rows,
    remember_size,
    remembered_size,
    rows_that_fit,
    run_in_batches,
    unless_out_of_memory,
)
from excise.model.inputs import accepts, text_module
from excise.model.row_groups import RowGroups
from excise.model.stock import TEXT_EVERY, generate_stock
from excise.model.template import ChatTemplate
from excise.progress import Progress, silent

_ROWS_CAN_LEAVE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_ROWS_CAN_JOIN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_FILL_UP = 4  # a batch is filled up once this part of it is free
_LOOK_EVERY_ON_GPU = 4  # tokens between two looks at the ids, each of which waits for the device


if TYPE_CHECKING:

    class TextModel(TokenModel, Protocol):
        """A model that handles text (an `EditableModel` with a tokenizer is one)."""

        @property
        def tokenizer(self) -> Any:
            """The tokenizer."""

        @property
        def template(self) -> ChatTemplate:
            """How prompts are rendered."""
else:
    # Asking an `EditableModel` without a tokenizer for one raises; a check of types must not come before that error.
    TextModel = TokenModel


@dataclass(frozen=True)
class Response:
    """What the model answered.

    text      without special tokens (thinking tags are kept)
    tokens    as generated, the end-of-sequence token that ended it included
    finished  it ended by itself, rather than by `max_tokens` or `stop`
    """

    text: str
    tokens: tuple[int, ...]
    finished: bool


def generate(
    model: TextModel,
    prompts: Sequence[str],
    *,
    system: str | None = None,
    thinking: bool = False,
    max_tokens: int,
    batch_size: int | None = None,
    stop: Callable[[str], bool] | None = None,
    progress: Progress = silent,
) -> list[Response]:
    """Greedy responses to prompts, in their order.

    The model's own sampling and penalty settings are ignored: each token is the one with the largest raw logit.

    max_tokens  per response
    batch_size  None chooses one from the memory that is free; it is halved where it turns out too large
    stop        looks at the text so far every few tokens; a row for which it is true ends there

    Raises `ModelError` where not even one row fits in memory, or the model has no tokenizer.
    """
    rows = model.template.encode(prompts, system=system, thinking=thinking)
    return generate_from_tokens(model, rows, max_tokens=max_tokens, batch_size=batch_size, stop=stop, progress=progress)


def generate_from_tokens(
    model: TextModel,
    rows: Rows,
    *,
    max_tokens: int,
    batch_size: int | None = None,
    stop: Callable[[str], bool] | None = None,
    groups: RowGroups | None = None,
    progress: Progress = silent,
) -> list[Response]:
    """`generate` for prompts that are token ids already.

    groups  which of several live edits each of `rows` is computed with (`excise.model.population`)
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}", hint="ask for at least one token")
    if not rows:
        return []
    size = batch_size or rows_that_fit(model, tokens=max(len(row) for row in rows) + max_tokens)
    ends = end_tokens(model)
    judge = _Judge(model.template, stop)
    if groups is not None:
        _settle(model)

    run = _Run(model, rows, max_tokens=max_tokens, ends=ends, judge=judge, groups=groups, progress=progress)
    if len(rows) > size and _rows_can_join(model):
        run.in_one(size)
    else:
        run.in_batches(size)
    return [judge.response(run.done[index], ends) for index in range(len(rows))]


def end_tokens(model: TextModel) -> frozenset[int]:
    """Every token that ends a response: the generation settings', the tokenizer's, and the template's end of turn."""
    found: set[int] = set()
    settings = (getattr(model.hf_model, "generation_config", None), model.hf_model.config, model.tokenizer)
    for source in settings:
        value = getattr(source, "eos_token_id", None)
        found.update([value] if isinstance(value, int) else value or [])
    if model.template.turn_end is not None:
        found.add(model.template.turn_end)
    return frozenset(found)


class _Judge:
    """Decides by the text whether a row has ended."""

    def __init__(self, template: ChatTemplate, stop: Callable[[str], bool] | None) -> None:
        self.template = template
        self.stop = stop
        self.reads_text = stop is not None or template.stop_text is not None

    def ended(self, rows: Rows) -> list[bool]:
        """For each row of generated tokens, whether its text says that it is over."""
        return [self._ended(text) for text in self.template.decode_batch(rows)]

    def _ended(self, text: str) -> bool:
        if self.template.stop_text is not None and self.template.stop_text in text:
            return True
        return self.stop is not None and self.stop(text)

    def response(self, tokens: list[int], ends: frozenset[int]) -> Response:
        """The result for one row."""
        text = self.template.decode(tokens)
        finished = bool(tokens) and tokens[-1] in ends
        mark = self.template.stop_text
        if mark is not None and mark in text:
            while mark in self.template.decode(tokens[:-1]):
                tokens = tokens[:-1]
            return Response(text[: text.index(mark)], tuple(tokens), True)
        return Response(text, tuple(tokens), finished)


class _Run:
    """All rows of one call.

    done  the tokens of the rows that are over, by number; what memory running out has interrupted is not among them
    """

    def __init__(
        self,
        model: TextModel,
        rows: Rows,
        *,
        max_tokens: int,
        ends: frozenset[int],
        judge: _Judge,
        groups: RowGroups | None,
        progress: Progress,
    ) -> None:
        self.model, self.rows, self.max_tokens, self.ends, self.judge = model, rows, max_tokens, ends, judge
        self.groups, self.progress = groups, progress
        self.done: dict[int, list[int]] = {}
        self.ended = judge.ended if judge.reads_text else None

    def in_batches(self, size: int) -> None:
        """Batch after batch, for models to whose batches no row can be added."""

        def work(numbers: list[int]) -> None:
            with self._told_apart(numbers), torch.no_grad():
                if _rows_can_leave(self.model):
                    self._decode(numbers, [], len(numbers))
                    return
                some = [self.rows[number] for number in numbers]
                found = generate_stock(self.model, some, self.max_tokens, self.ends, self.ended)
                self.done.update(zip(numbers, found, strict=True))

        run_in_batches(self.model, self.rows, work, batch_size=size, progress=self.progress, label="generating")

    def in_one(self, size: int) -> None:
        """In one batch of at most `size` rows that is filled up again, longest prompts first."""
        (order,) = batches_by_length(self.rows, batch_size=len(self.rows))
        size = remembered_size(self.model, "generating", size, longest=self._longest)
        while waiting := [number for number in order if number not in self.done]:

            def work(waiting: list[int] = waiting, size: int = size) -> None:
                with self._told_apart(waiting[:size]), torch.no_grad():
                    self._decode(waiting[:size], waiting[size:], size)

            if unless_out_of_memory(work, single=size == 1) is None:
                size = (size + 1) // 2
                remember_size(self.model, "generating", size, longest=self._longest)

    @property
    def _longest(self) -> int:
        return max(map(len, self.rows)) + self.max_tokens

    def _told_apart(self, numbers: list[int]) -> AbstractContextManager[None]:
        return nullcontext() if self.groups is None else self.groups.rows(numbers)

    def _decode(self, numbers: list[int], waiting: list[int], size: int) -> None:
        """These rows, and as others leave those that wait, at most `size` at a time."""
        batch = self._begin(numbers)
        look = 1 if self.model.device.type == "cpu" else _LOOK_EVERY_ON_GPU
        while True:
            made, free = batch.made[0], size - len(batch.alive)
            read = self.ended is not None and made % TEXT_EVERY == 0
            # Those that join have one token: so the texts of all rows are due at the same steps.
            joining = bool(waiting) and free >= max(1, size // _FILL_UP) and made % TEXT_EVERY == 1
            if made % look == 0 or read or joining or self.max_tokens in batch.made:
                batch.collect(self.ended if read else None, most=self.max_tokens)
                self._settled(batch)
            if not batch.alive and not waiting:
                return
            if not batch.alive:
                batch, waiting = self._begin(waiting[:size]), waiting[size:]
                continue
            if joining:
                other, waiting = self._begin(waiting[:free]), waiting[free:]
                other.collect(None, most=self.max_tokens)
                batch.absorb(other)
                self._settled(batch)
            batch.step()

    def _begin(self, numbers: list[int]) -> Decoding:
        return Decoding(self.model, self.rows, numbers, self.ends, self.groups)

    def _settled(self, batch: Decoding) -> None:
        """Take what is over out of the batch's hands."""
        over = batch.tokens.keys() - batch.alive
        if over:
            self.done.update({number: batch.tokens.pop(number) for number in over})
            self.progress("generating", len(self.done), len(self.rows), "rows")


@torch.no_grad()
def _settle(model: TextModel) -> None:
    """Find out how the model behaves before rows are told apart: probes have rows of their own."""
    padding_is_exact(model)
    _rows_can_leave(model)
    _rows_can_join(model)


def _rows_can_leave(model: TextModel) -> bool:
    """Whether a batch of this model may shrink midway; found once, by comparing with passes that use no cache."""
    return _found_out(model, _ROWS_CAN_LEAVE, _probe_leaving)


def _rows_can_join(model: TextModel) -> bool:
    """Whether rows may be added to a batch of this model midway; found once, in the same way."""
    return _rows_can_leave(model) and _found_out(model, _ROWS_CAN_JOIN, _probe_joining)


def _found_out(model: TextModel, known: WeakKeyDictionary[nn.Module, bool], probe: Callable[[TextModel], bool]) -> bool:
    if model.hf_model not in known:
        try:
            with torch.no_grad():
                known[model.hf_model] = probe(model)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):  # a cache of another make
            known[model.hf_model] = False
    return known[model.hf_model]


def _probe_leaving(model: TextModel) -> bool:
    rows = probe_rows(model)
    if not padding_is_exact(model):
        rows = [row[: len(rows[-1])] for row in rows]
    batch = Decoding(model, rows, range(len(rows)), frozenset())
    if batch.cache is None or not accepts(text_module(model.hf_model), batch.cache_name):
        return False
    batch.step()
    batch.keep([0, 2])
    batch.step()
    return _agrees_with_whole_passes(model, rows, batch)


def _probe_joining(model: TextModel) -> bool:
    rows = probe_rows(model)
    batch, other = (Decoding(model, rows, some, frozenset()) for some in ([0, 1], [2]))
    if not batch.can_grow or not padding_is_exact(model):
        return False
    batch.step()
    batch.keep([1])
    batch.step()
    for each in (batch, other):
        each.collect(None, most=len(rows[0]) + 8)
    batch.absorb(other)
    batch.step()
    return _agrees_with_whole_passes(model, rows, batch)


def _agrees_with_whole_passes(model: TextModel, rows: Rows, batch: Decoding) -> bool:
    """Whether the last logits are those of passes over everything that was read."""
    read = [list(batch.tokens[number]) for number in batch.alive]
    for step in batch.fresh[:-1]:
        for row, token in zip(read, step.tolist(), strict=True):
            row.append(token)
    whole = [[*rows[number], *tokens] for number, tokens in zip(batch.alive, read, strict=True)]
    alone = torch.cat([last_logits(model, pad_left([row], 0, model.device), 1)[:, -1] for row in whole])
    return logits_agree(batch.logits, alone, model.dtype)
