"""Greedy generation in batches that shrink: a row leaves as soon as it has ended, or its caller has seen enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import LongTensor, Tensor, nn
from transformers import Cache

from excise.errors import InputError
from excise.model.agreement import logits_agree
from excise.model.forward import (
    Rows,
    TokenModel,
    inputs_of,
    last_logits,
    pad_id,
    pad_left,
    padding_is_exact,
    probe_rows,
    rows_that_fit,
    run_in_batches,
)
from excise.model.inputs import accepts, text_module, without_images
from excise.model.row_groups import RowGroups
from excise.model.stock import TEXT_EVERY, generate_stock, up_to_end
from excise.model.template import ChatTemplate
from excise.progress import Progress, silent

_CACHE_NAMES = ("past_key_values", "cache_params")
_ROWS_CAN_LEAVE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
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

    def work(indices: list[int]) -> list[list[int]]:
        with nullcontext() if groups is None else groups.rows(indices):
            return _generate_batch(model, [rows[index] for index in indices], max_tokens, ends, judge, groups)

    done = run_in_batches(model, rows, work, batch_size=size, progress=progress, label="generating")
    tokens: dict[int, list[int]] = {}
    for indices, generated in done:
        tokens.update(zip(indices, generated, strict=True))
    return [judge.response(tokens[index], ends) for index in range(len(rows))]


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


def _generate_batch(
    model: TextModel, rows: Rows, max_tokens: int, ends: frozenset[int], judge: _Judge, groups: RowGroups | None
) -> list[list[int]]:
    with torch.no_grad():
        if not _rows_can_leave(model):
            return generate_stock(model, rows, max_tokens, ends, judge.ended if judge.reads_text else None)
        generation = _Generation(model, rows, ends, groups)
        look = 1 if model.device.type == "cpu" else _LOOK_EVERY_ON_GPU
        for step in range(1, max_tokens + 1):
            read = judge.reads_text and step % TEXT_EVERY == 0
            if step % look == 0 or read or step == max_tokens:
                generation.collect(judge if read else None)
            if not generation.alive or step == max_tokens:
                break
            generation.step()
    return generation.tokens


class _Generation:
    """One batch under way.

    alive   for each row still in the batch, its index among the rows asked for
    tokens  what is known of each row's response
    fresh   chosen tokens that the host has not looked at yet, one tensor per step
    """

    def __init__(self, model: TextModel, rows: Rows, ends: frozenset[int], groups: RowGroups | None = None) -> None:
        self.model: Any = text_module(model.hf_model)
        self.groups = groups
        self.ends = ends
        self.alive = list(range(len(rows)))
        self.tokens: list[list[int]] = [[] for _ in rows]
        self.options: dict[str, Any] = {"use_cache": True}
        if accepts(self.model, "logits_to_keep"):
            self.options["logits_to_keep"] = 1
        batch = pad_left(rows, pad_id(model), model.device)
        self.wants_images = bool(without_images(self.model, batch.input_ids))
        self.mask = batch.attention_mask if batch.padded else None
        counted = accepts(self.model, "position_ids") and padding_is_exact(model)  # else as the model counts them
        self.positions = batch.position_ids[:, -1:] if counted else None
        output = self.model(**{**inputs_of(self.model, batch), **self.options})
        self.cache_name, self.cache = _cache_of(output)
        if self.cache_name == "cache_params":  # recurrence alone: nothing to mask once the prompt has been read
            self.mask = None
        self.logits: Float[Tensor, "row vocab"] = output.logits[:, -1]
        self.last: Int[Tensor, " row"] = self.logits.argmax(dim=-1)
        self.fresh = [self.last]

    def step(self) -> None:
        """Feed the last tokens and choose the next ones; nothing waits for the device."""
        ids = self.last[:, None]
        inputs = {"input_ids": ids, self.cache_name: self.cache, **self.options}
        if self.wants_images:
            inputs |= without_images(self.model, ids)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=-1)
            inputs["attention_mask"] = self.mask
        if self.positions is not None:
            self.positions = self.positions + 1
            inputs["position_ids"] = self.positions
        self.logits = self.model(**inputs).logits[:, -1]
        self.last = self.logits.argmax(dim=-1)
        self.fresh.append(self.last)

    def collect(self, judge: _Judge | None) -> None:
        """Bring the new tokens to the host and let the rows go that have ended."""
        new_tokens = torch.stack(self.fresh, dim=-1).tolist()
        self.fresh = []
        for index, new in zip(self.alive, new_tokens, strict=True):
            self.tokens[index] += up_to_end(new, self.ends)
        over = [self.tokens[index][-1] in self.ends for index in self.alive]
        if judge is not None:
            by_text = judge.ended([self.tokens[index] for index in self.alive])
            over = [ended or text_ended for ended, text_ended in zip(over, by_text, strict=True)]
        if any(over):
            self.keep([row for row, ended in enumerate(over) if not ended])

    def keep(self, rows: list[int]) -> None:
        """Only these rows of the batch go on."""
        self.alive = [self.alive[row] for row in rows]
        if not rows:
            return
        if self.groups is not None:
            self.groups.keep(rows)
        index = torch.tensor(rows, device=self.last.device)
        self.last = self.last[index]
        self.positions = None if self.positions is None else self.positions[index]
        self.mask = None if self.mask is None else self.mask[index]
        assert self.cache is not None
        # `reorder_cache` selects rows in every kind of cache layer; `batch_select_indices` knows attention only
        self.cache.reorder_cache(cast(LongTensor, index))


@torch.no_grad()
def _settle(model: TextModel) -> None:
    """Find out how the model behaves before rows are told apart: probes have rows of their own."""
    padding_is_exact(model)
    _rows_can_leave(model)


def _rows_can_leave(model: TextModel) -> bool:
    """Whether a batch of this model may shrink midway; found once, by comparing with passes that use no cache."""
    if model.hf_model not in _ROWS_CAN_LEAVE:
        try:
            _ROWS_CAN_LEAVE[model.hf_model] = _probe_leaving(model)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):  # a cache of another make
            _ROWS_CAN_LEAVE[model.hf_model] = False
    return _ROWS_CAN_LEAVE[model.hf_model]


def _probe_leaving(model: TextModel) -> bool:
    rows = probe_rows(model)
    if not padding_is_exact(model):
        rows = [row[: len(rows[-1])] for row in rows]
    generation = _Generation(model, rows, frozenset())
    if generation.cache is None or not accepts(text_module(model.hf_model), generation.cache_name):
        return False
    generation.step()
    generation.keep([0, 2])
    generation.step()
    generation.fresh, kept = [], [tokens[[0, 2]] if len(tokens) == 3 else tokens for tokens in generation.fresh]
    fed = torch.stack(kept[:-1], dim=-1).tolist()
    whole = [[*rows[index], *tokens] for index, tokens in zip((0, 2), fed, strict=True)]
    alone = torch.cat([last_logits(model, pad_left([row], 0, model.device), 1)[:, -1] for row in whole])
    return logits_agree(generation.logits, alone, model.dtype)


def _cache_of(output: Any) -> tuple[str, Cache | None]:
    for name in _CACHE_NAMES:
        cache = getattr(output, name, None)
        if isinstance(cache, Cache):
            return name, cache
    return _CACHE_NAMES[0], None
