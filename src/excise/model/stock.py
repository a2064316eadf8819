"""Transformers' own greedy loop, for models whose cache cannot drop rows: a row stays to the end of its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from excise.model.forward import Rows, TokenModel, pad_id, pad_left
from excise.model.inputs import accepts, text_module
from excise.model.precision import is_out_of_memory

TEXT_EVERY = 8  # tokens between two looks at the decoded text
_CACHES = ("use_cache", "past_key_values", "cache_params", "state")
Ended = Callable[[Rows], list[bool]]


def generate_stock(
    model: TokenModel, rows: Rows, max_tokens: int, ends: frozenset[int], ended: Ended | None
) -> list[list[int]]:
    """Greedy tokens for each row, up to and with the first of `ends`.

    ended  tells of rows of generated tokens which are over; None: none is before its end token

    Where Transformers fails with the model's cache (BLT's has no layout, Reformer's breaks on short prompts), each
    token is computed anew.
    """
    reader = text_module(model.hf_model)
    # a cache is laid out after settings that a model which knows of none may not have
    if any(accepts(reader, name) for name in _CACHES):
        try:
            return _generate(model, rows, max_tokens, ends, ended, cached=True)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            if is_out_of_memory(error):
                raise
    return _generate(model, rows, max_tokens, ends, ended, cached=False)


def _generate(
    model: TokenModel, rows: Rows, max_tokens: int, ends: frozenset[int], ended: Ended | None, *, cached: bool
) -> list[list[int]]:
    batch = pad_left(rows, pad_id(model), model.device)
    width = batch.input_ids.shape[1]
    criterion = _TextCriterion(ended, width) if ended is not None else None
    reader: Any = text_module(model.hf_model)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad_id(model),
        use_cache=cached,
    )
    with _generation_settings(reader, settings):
        output = reader.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            stopping_criteria=StoppingCriteriaList([criterion] if criterion else []),
        )
    lengths = criterion.lengths if criterion else {}
    generated = output[:, width:].tolist()
    return [up_to_end(tokens, ends)[: lengths.get(row)] for row, tokens in enumerate(generated)]


def up_to_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """The tokens up to and with the first that ends a response."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens


class _TextCriterion(StoppingCriteria):
    """Ends rows by their text; remembers at how many tokens."""

    def __init__(self, ended: Ended, prompt_width: int) -> None:
        self.ended = ended
        self.prompt_width = prompt_width
        self.lengths: dict[int, int] = {}

    def __call__(self, input_ids: Int[Tensor, "row token"], _: Any, **__: Any) -> Any:
        length = input_ids.shape[1] - self.prompt_width
        if length % TEXT_EVERY == 0:
            for row, ended in enumerate(self.ended(input_ids[:, self.prompt_width :].tolist())):
                if ended:
                    self.lengths.setdefault(row, length)
        over = [row in self.lengths for row in range(len(input_ids))]
        return torch.tensor(over, device=input_ids.device)


@contextmanager
def _generation_settings(hf_model: Any, settings: GenerationConfig) -> Iterator[None]:
    """The model's own generation settings replaced for a while: unset fields would be filled from them."""
    original = hf_model.generation_config
    hf_model.generation_config = settings
    try:
        yield
    finally:
        hf_model.generation_config = original
