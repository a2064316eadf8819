"""The residual of a token, whatever the decoder layers of an architecture return.

Most layers return one vector per token. Some carry several streams: (row, token, stream, hidden) in hyper-connections,
(stream, row, token, hidden) in Gemma 3n, (row, token, stream × hidden) in Qwen 4, a pair of tensors in reversible
layers. The residual of a token is then the mean over its streams: it has the survey's hidden size everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from excise.errors import ModelError
from excise.model.stack import token_axis
from excise.model.trace import attached, streams_of


def residual_of(output: Any, tokens: Int[Tensor, "row token"], hidden: int) -> Float[Tensor, "row token hidden"]:
    """The residual stream in what a decoder layer returned for `tokens`: the mean over its streams, where it has more
    than one (in fp32 then, else in the model's dtype).

    A layer may have appended tokens to the right of those it was given; they are left out. Raises `ModelError` where
    the tokens cannot be told from the shape.
    """
    streams = streams_of(output)
    if not streams:
        raise ModelError(
            f"a decoder layer returned {type(output).__name__}, not a residual stream",
            hint="open an issue with the model's config.json",
        )
    parts = [_by_token(stream, tokens, hidden) for stream in streams]
    if len(parts) == 1 and parts[0].shape[2] == 1:
        return parts[0][:, :, 0]
    return torch.cat(parts, dim=2).mean(dim=2, dtype=torch.float32)


@contextmanager
def residuals_taken(
    layers: Sequence[nn.Module],
    tokens: Int[Tensor, "row token"],
    hidden: int,
    take: Callable[[Float[Tensor, "row token hidden"]], Tensor],
) -> Iterator[list[Tensor]]:
    """While the block runs one pass over `tokens`, keep `take(residual)` of every layer; the list is filled at its end.

    Of a layer that is called several times (looped models) the last call counts. One that is not run passes the stream
    on as it is, so it has the residual of the layer before it (the first that is run, where none is before).
    """
    kept: dict[int, Tensor] = {}
    taken: list[Tensor] = []

    def hook(index: int) -> Callable[..., None]:
        def after(_: nn.Module, __: Any, output: Any) -> None:
            kept[index] = take(residual_of(output, tokens, hidden))

        return after

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.enter_context(attached(layer.register_forward_hook(hook(index))))
        yield taken
    if not kept:
        raise ModelError("the pass ran none of the decoder layers", hint="open an issue with the model's config.json")
    latest = kept[min(kept)]
    for index in range(len(layers)):
        latest = kept.get(index, latest)
        taken.append(latest)


def _by_token(
    stream: Float[Tensor, ...], tokens: Int[Tensor, "row token"], hidden: int
) -> Float[Tensor, "row token stream hidden"]:
    """A view of one tensor with the axes of its streams, wherever they are, behind that of the tokens."""
    shape, (rows, length) = stream.shape, tokens.shape
    axis = token_axis(shape, tokens)
    if axis is None:
        longer = (place for place in range(len(shape) - 2) if shape[place] == rows and shape[place + 1] > length)
        axis = next(longer, None)
    if axis is None or shape[-1] % hidden:
        raise ModelError(
            f"a decoder layer returned a tensor of shape {tuple(shape)} for {rows} rows of {length} tokens",
            hint="open an issue with the model's config.json",
        )
    if len(shape) > 3 and token_axis(shape[axis + 1 :], tokens) is not None:
        raise ModelError(
            f"a stream of shape {tuple(shape)} does not tell rows, tokens and streams apart",
            hint=f"run another number of rows than {rows} at once",
        )
    ordered = stream.movedim((axis, axis + 1), (0, 1))[:, :length]
    parts: Tensor = ordered.unflatten(-1, (-1, hidden)).flatten(2, -2)
    return parts
