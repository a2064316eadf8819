"""One batch under way: rows leave as soon as they are over, and others take their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import LongTensor, Tensor
from transformers import Cache

from excise.model.forward import Rows, TokenModel, inputs_of, pad_id, pad_left, padding_is_exact
from excise.model.growing_cache import GrowingLayer, with_room
from excise.model.inputs import accepts, text_module, without_images
from excise.model.row_groups import RowGroups
from excise.model.stock import Ended, up_to_end

_CACHE_NAMES = ("past_key_values", "cache_params")


class Decoding:
    """Rows that have read their prompts, and grow by one token at a time.

    numbers  of the rows that are run, among those asked for; `alive` are those of them that are still in the batch
    tokens   by number, what is known of each row's response
    made     for each row alive, how many tokens its response has, those included that the host has not looked at yet
    fresh    chosen tokens that it has not looked at, one tensor per step
    """

    def __init__(
        self,
        model: TokenModel,
        rows: Rows,
        numbers: Sequence[int],
        ends: frozenset[int],
        groups: RowGroups | None = None,
    ) -> None:
        self.model: Any = text_module(model.hf_model)
        self.groups = groups
        self.ends = ends
        self.alive = list(numbers)
        self.tokens: dict[int, list[int]] = {number: [] for number in numbers}
        self.made = [1] * len(numbers)
        self.options: dict[str, Any] = {"use_cache": True}
        if accepts(self.model, "logits_to_keep"):
            self.options["logits_to_keep"] = 1
        batch = pad_left([rows[number] for number in numbers], pad_id(model), model.device)
        self.wants_images = bool(without_images(self.model, batch.input_ids))
        self.mask = batch.attention_mask if batch.padded else None
        counted = accepts(self.model, "position_ids") and padding_is_exact(model)  # else as the model counts them
        self.positions = batch.position_ids[:, -1:] if counted else None
        self._tell_groups()
        output = self.model(**{**inputs_of(self.model, batch), **self.options})
        self.cache_name, self.cache = _cache_of(output)
        if self.cache_name == "cache_params":  # recurrence alone: nothing to mask once the prompt has been read
            self.mask = None
        if self.cache is not None:
            with_room(self.cache)
        self.logits: Float[Tensor, "row vocab"] = output.logits[:, -1]
        self.last: Int[Tensor, " row"] = self.logits.argmax(dim=-1)
        self.fresh = [self.last]

    @property
    def can_grow(self) -> bool:
        """Whether rows can be added: positions are given, and all that is remembered are keys and values."""
        return (
            self.cache is not None
            and self.positions is not None
            and not self.wants_images
            and bool(self.cache.layers)
            and all(type(layer) is GrowingLayer for layer in self.cache.layers)
        )

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
        self.made = [count + 1 for count in self.made]

    def collect(self, ended: Ended | None, *, most: int) -> None:
        """Bring the new tokens to the host and let the rows go that have ended, or have `most` tokens.

        ended  tells of rows of generated tokens which are over by their text; None: it is not looked at
        """
        if self.fresh:
            new_tokens = torch.stack(self.fresh, dim=-1).tolist()
            self.fresh = []
            for number, new in zip(self.alive, new_tokens, strict=True):
                self.tokens[number] += up_to_end(new, self.ends)
                del self.tokens[number][most:]
        rows = [self.tokens[number] for number in self.alive]
        over = [len(row) >= most or row[-1] in self.ends for row in rows]
        if ended is not None:
            over = [known or by_text for known, by_text in zip(over, ended(rows), strict=True)]
        if any(over):
            self.keep([place for place, known in enumerate(over) if not known])

    def keep(self, places: list[int]) -> None:
        """Only these rows of the batch go on."""
        self.alive = [self.alive[place] for place in places]
        self.made = [self.made[place] for place in places]
        if not places:
            return
        self._tell_groups()
        index = torch.tensor(places, device=self.last.device)
        self.last = self.last[index]
        self.fresh = [each[index] for each in self.fresh]
        self.positions = None if self.positions is None else self.positions[index]
        self.mask = None if self.mask is None else self.mask[index]
        assert self.cache is not None
        # `reorder_cache` selects rows in every kind of cache layer; `batch_select_indices` knows attention only
        self.cache.reorder_cache(cast(LongTensor, index))

    def absorb(self, other: Decoding) -> None:
        """Add the rows of another batch, at their own lengths; both must be able to grow, with no token unseen."""
        assert self.can_grow
        assert other.can_grow
        assert not self.fresh
        assert not other.fresh
        if not other.alive:
            self.tokens |= other.tokens
            self._tell_groups()
            return
        mine, theirs = self._masked(), other._masked()
        unread = int(mine.any(dim=0).int().argmax())  # columns on the left that only rows which have left did read
        width = max(mine.shape[1] - unread, theirs.shape[1])
        self.mask = torch.cat([_widened(mine[:, unread:], width), _widened(theirs, width)])
        assert self.cache is not None
        assert other.cache is not None
        for layer, another in zip(self.cache.layers, other.cache.layers, strict=True):
            assert isinstance(layer, GrowingLayer)
            assert isinstance(another, GrowingLayer)
            layer.absorb(another, unread=unread)
        assert self.positions is not None
        assert other.positions is not None
        self.positions = torch.cat([self.positions, other.positions])
        self.last = torch.cat([self.last, other.last])
        self.alive += other.alive
        self.made += other.made
        self.tokens |= other.tokens
        self._tell_groups()

    def _masked(self) -> Int[Tensor, "row token"]:
        """The mask over all that is remembered."""
        assert self.cache is not None
        return self.last.new_ones(len(self.last), self.cache.get_seq_length()) if self.mask is None else self.mask

    def _tell_groups(self) -> None:
        if self.groups is not None:
            self.groups.now(self.alive)


def _widened(mask: Int[Tensor, "row token"], width: int) -> Int[Tensor, "row width"]:
    return torch.nn.functional.pad(mask, (width - mask.shape[1], 0))


def _cache_of(output: Any) -> tuple[str, Cache | None]:
    for name in _CACHE_NAMES:
        cache = getattr(output, name, None)
        if isinstance(cache, Cache):
            return name, cache
    return _CACHE_NAMES[0], None
