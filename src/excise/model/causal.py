"""Whether a model looks at later tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from excise.errors import SurveyError
from excise.model.inputs import accepts, run, sample_tokens
from excise.model.stack import token_axis


def causal_tokens(model: nn.Module, *, rows: int, length: int, seed: int) -> Int[Tensor, "rows length"]:
    """Random tokens of which the second row differs from the first in its last token alone."""
    tokens = sample_tokens(model, rows=rows, length=length, seed=seed)
    tokens[1] = tokens[0]
    tokens[1, -1] = tokens[0, 0]
    return tokens


def check_causal(model: nn.Module, stream: Float[Tensor, ...], tokens: Int[Tensor, "rows length"]) -> None:
    """Refuse models whose earlier positions change with a later token, unless they go on from a cache.

    A prefix language model looks at the whole prompt and then generates token by token; an encoder has no cache.

    stream  what the last layer gave out for `causal_tokens`; a stream of anything but tokens is not looked at

    Raises `SurveyError`.
    """
    axis = token_axis(stream.shape, tokens)
    if stream.is_meta or axis is None:
        return
    first, second = stream.float().movedim((axis, axis + 1), (0, 1))[:2].unbind()
    change = (first - second).abs().flatten(start_dim=1).amax(dim=-1)
    tolerance = 1e-3 if stream.dtype == torch.float32 else 3e-2
    if float(change[:-1].max()) > tolerance * float(change[-1]) and not _caches(model, tokens):
        raise SurveyError(
            f"{type(model).__name__} looks at later tokens: it is not a causal language model",
            hint="excise edits decoder language models (text generation)",
        )


def _caches(model: nn.Module, tokens: Int[Tensor, "rows length"]) -> bool:
    try:
        with torch.no_grad():
            output = run(model, tokens, use_cache=True)
    except (AttributeError, RuntimeError):  # a cache that Transformers cannot lay out (BLT's)
        return accepts(model, "past_key_values")
    return getattr(output, "past_key_values", None) is not None
