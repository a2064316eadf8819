"""Adding a vector to the residual stream after one layer: what activates a behavior rather than removing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from excise.model.trace import attached, streams_of


@contextmanager
def vector_added(layer: nn.Module, vector: Float[Tensor, " hidden"]) -> Iterator[None]:
    """Inside the block, `vector` is added to the residual of every token after a decoder layer; nothing stays after it.

    Where a token has several streams it is added to each, so that their mean moves by `vector`. A layer that is called
    several times adds it each time.
    """

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        return _shifted(output, {id(stream) for stream in streams_of(output)}, vector)

    with attached(layer.register_forward_hook(hook)):
        yield


def _shifted(output: Any, streams: set[int], vector: Tensor) -> Any:
    """What a layer returned, with its streams shifted and all else as it was."""
    if isinstance(output, Tensor):
        return _plus(output, vector) if id(output) in streams else output
    if isinstance(output, dict):
        changed = copy(output)
        for key, value in output.items():
            if id(value) in streams:
                changed[key] = _plus(value, vector)
        return changed
    return type(output)(_plus(item, vector) if id(item) in streams else item for item in output)


def _plus(stream: Float[Tensor, "... width"], vector: Float[Tensor, " hidden"]) -> Float[Tensor, "... width"]:
    shift = vector.to(stream.device).float().repeat(stream.shape[-1] // len(vector))
    return (stream.float() + shift).to(stream.dtype)
