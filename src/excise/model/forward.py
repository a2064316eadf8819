"""Forward passes over rows of different lengths: padded on the left, with the masks and positions that make a row's
result the one it has on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from excise.errors import ModelError
from excise.model.agreement import limit, logits_difference, residual_difference
from excise.model.inputs import accepts, text_module, without_images
from excise.model.precision import is_out_of_memory
from excise.model.streams import residuals_taken
from excise.progress import Progress, silent

Rows = Sequence[Sequence[int]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Padding:
    """Whether padding is exact, and whether residuals were looked at."""

    exact: bool
    surveyed: bool


_FITTED: WeakKeyDictionary[nn.Module, dict[str, int]] = WeakKeyDictionary()  # rows × tokens, by operation
_PADDING_EXACT: WeakKeyDictionary[nn.Module, _Padding] = WeakKeyDictionary()
_PROBE_LENGTHS = (21, 13, 6)
_FAR = 150  # columns with more padding than a block of keys has (128), where blocks are what attention chooses from
_SAME_SHAPES = 0.05  # passes of the same shapes round alike, so that even in bf16 they differ less, experts included


@runtime_checkable
class TokenModel(Protocol):
    """What a forward pass needs of a model (an `EditableModel` is one)."""

    @property
    def hf_model(self) -> Any:
        """The Transformers model."""

    @property
    def tower(self) -> nn.Module:
        """Its decoder stack, without the LM head."""

    @property
    def device(self) -> torch.device:
        """Where token ids go."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""


@dataclass(frozen=True)
class Batch:
    """Rows of token ids, aligned on the right.

    input_ids       padded on the left
    attention_mask  1 for tokens, 0 for padding
    position_ids    count from 0 at each row's first token; 0 on padding
    padded          whether there is any padding at all
    """

    input_ids: Int[Tensor, "row token"]
    attention_mask: Int[Tensor, "row token"]
    position_ids: Int[Tensor, "row token"]
    padded: bool

    def __len__(self) -> int:
        return len(self.input_ids)


def pad_left(rows: Rows, pad: int, device: torch.device | str, *, least: int = 0) -> Batch:
    """One batch of `rows`, none of which may be empty. `pad` may be any id: it is masked.

    least  how many columns there are at least
    """
    width = max(least, *(len(row) for row in rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.long)
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    padded = any(len(row) != width for row in rows)
    return Batch(ids.to(device), mask.to(device), positions.to(device), padded)


def batches_by_length(rows: Rows, *, batch_size: int, equal: bool = False) -> Iterator[list[int]]:
    """Indices of `rows`, longest first, in groups of at most `batch_size`; the order is always the same.

    equal  only rows of one length share a group: for models whose result depends on padding
    """
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    group: list[int] = []
    for index in order:
        if group and (len(group) == batch_size or (equal and len(rows[index]) != len(rows[group[0]]))):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def run_in_batches(
    model: TokenModel,
    rows: Rows,
    work: Callable[[list[int]], Result],
    *,
    batch_size: int,
    progress: Progress = silent,
    label: str = "forward passes",
) -> list[tuple[list[int], Result]]:
    """`work(indices)` for groups of rows of similar length; a group that does not fit in memory is halved.

    Rows are never padded where the model is not exact under padding. Raises `ModelError` where one row does not fit.
    """
    equal = len({len(row) for row in rows}) > 1 and not padding_is_exact(model)
    waiting = list(batches_by_length(rows, batch_size=batch_size, equal=equal))[::-1]
    results: list[tuple[list[int], Result]] = []
    longest = max((len(row) for row in rows), default=1)
    limit, done = remembered_size(model, label, batch_size, longest=longest), 0
    while waiting:
        group = waiting.pop()
        if len(group) > limit:
            waiting += [group[limit:], group[:limit]]
            continue
        result = unless_out_of_memory(partial(work, group), single=len(group) == 1)
        if result is None:
            limit = (len(group) + 1) // 2
            remember_size(model, label, limit, longest=longest)
            waiting.append(group)
            continue
        results.append((group, result[0]))
        done += len(group)
        progress(label, done, len(rows), "rows")
    return results


def remembered_size(model: TokenModel, operation: str, size: int, *, longest: int) -> int:
    """At most `size` rows of `longest` tokens each: fewer where memory ran out in this operation before."""
    area = _FITTED.get(model.hf_model, {}).get(operation)
    return size if area is None else max(1, min(size, area // longest))


def remember_size(model: TokenModel, operation: str, size: int, *, longest: int) -> None:
    """Remember a batch size, halved as memory ran out, for all later rows of this operation."""
    _FITTED.setdefault(model.hf_model, {})[operation] = size * longest


def forward(model: TokenModel, batch: Batch, *, logits: int = 0) -> Float[Tensor, "row last vocab"] | None:
    """One pass without gradients; hooks on the layers see the residual stream.

    logits  the number of last positions whose raw logits are returned, in the model's dtype; 0 skips the LM head and
            returns None
    """
    if logits == 0:
        with torch.no_grad():
            model.tower(**inputs_of(model.tower, batch))
        return None
    return last_logits(model, batch, logits)


def last_logits(
    model: TokenModel, batch: Batch, last: int, *, gradients: bool = False
) -> Float[Tensor, "row last vocab"]:
    """Raw logits of the `last` positions of every row; nothing else goes through the LM head where that can be had.

    gradients  whether they reach what hooks put into the pass
    """
    reader = text_module(model.hf_model)
    options: dict[str, Any] = {"logits_to_keep": last} if accepts(reader, "logits_to_keep") else {}
    with torch.set_grad_enabled(gradients):
        output = reader(**inputs_of(reader, batch), **options)
    kept: Tensor = output.logits[:, -last:]
    return kept


def inputs_of(module: nn.Module, batch: Batch) -> dict[str, Any]:
    """Keyword arguments of `module.forward` for a batch, as far as it takes them; no cache is built.

    Without padding the model counts positions itself: some begin elsewhere than at 0. `padding_is_exact` finds out
    whether it agrees with those that a padded batch is given.
    """
    offered: dict[str, Any] = {"use_cache": False, "is_decoder": True}  # BLIP's tower is an encoder unless told
    if batch.padded:
        offered |= {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    known = {name: value for name, value in offered.items() if accepts(module, name)}
    return {"input_ids": batch.input_ids, **known, **without_images(module, batch.input_ids)}


@dataclass(frozen=True)
class Continuations:
    """Logits that predict the tokens of continuations, for some of the rows asked for.

    rows     which rows, as indices into what was given
    logits   raw logits in the model's dtype; position j predicts `tokens[:, j]`
    tokens   the continuations, aligned on the right; 0 where a continuation is shorter
    mask     True where there is a token
    """

    rows: tuple[int, ...]
    logits: Float[Tensor, "row token vocab"]
    tokens: Int[Tensor, "row token"]
    mask: Bool[Tensor, "row token"]


def continuation_logits(
    model: TokenModel,
    prompt_ids: Rows,
    continuation_ids: Rows,
    *,
    rows: Sequence[int] | None = None,
    gradients: bool = False,
) -> Continuations:
    """One pass over prompt + continuation for the given rows (all by default): what predicts each continuation token.

    Both lists must have rows of at least one token. The LM head runs on the last positions only. The caller chooses
    rows so that row × token × vocabulary fits in memory (`rows_that_fit`).
    """
    chosen = list(range(len(prompt_ids)) if rows is None else rows)
    full = [[*prompt_ids[index], *continuation_ids[index]][:-1] for index in chosen]
    answers = pad_left([continuation_ids[index] for index in chosen], 0, model.device)
    width = answers.input_ids.shape[1]
    logits = last_logits(model, pad_left(full, pad_id(model), model.device), width, gradients=gradients)
    return Continuations(tuple(chosen), logits, answers.input_ids, answers.attention_mask.bool())


def log_softmax_chunks(
    logits: Float[Tensor, "token vocab"], *, elements: int = 1 << 24
) -> Iterator[tuple[slice, Float[Tensor, "chunk vocab"]]]:
    """fp32 log-probabilities in chunks of at most about `elements` numbers, so that large vocabularies fit."""
    step = max(1, elements // logits.shape[-1])
    for start in range(0, len(logits), step):
        part = slice(start, min(start + step, len(logits)))
        yield part, logits[part].float().log_softmax(dim=-1)


def rows_that_fit(model: TokenModel, *, tokens: int, positions: int = 1) -> int:
    """A batch size for rows of `tokens` tokens with logits at `positions` of them, from the memory that is free.

    A first guess only: `run_in_batches` halves what turns out too large.
    """
    config = model.hf_model.config.get_text_config(decoder=True)
    hidden = int(getattr(config, "hidden_size", 0) or 1024)
    layers = int(getattr(config, "num_hidden_layers", 0) or 32)
    vocabulary = int(getattr(config, "vocab_size", 0) or 32_000)
    itemsize = model.dtype.itemsize
    per_row = tokens * hidden * itemsize * (2 * layers + 24) + positions * vocabulary * (itemsize + 8)
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        return max(1, min(256, int(0.5 * free / per_row)))
    return max(1, min(64, (2 << 30) // per_row))


def pad_id(model: TokenModel) -> int:
    """A token id to pad with; it is masked, so any id that exists will do."""
    for source in (getattr(model.hf_model, "generation_config", None), model.hf_model.config):
        value = getattr(source, "pad_token_id", None)
        if isinstance(value, int) and value >= 0:
            return value
    return 0


def padding_is_exact(model: TokenModel) -> bool:
    """Whether left padding leaves a row's logits, and its residuals after every layer, what they are without it.

    Linear-attention layers may leak, for one. Found once per model by a probe: three rows of different lengths,
    together and each on its own, and one behind a lot of padding. Residuals are looked at once the model has been
    surveyed (`EditableModel.survey`), which says what its layers are; before, the logits alone decide. A survey is not
    made here: an edit may be live.
    """
    surveyed = "survey" in vars(model)
    known = _PADDING_EXACT.get(model.hf_model)
    if known is None or (known.exact and surveyed and not known.surveyed):
        known = _Padding(_probe_padding(model, surveyed), surveyed)
        _PADDING_EXACT[model.hf_model] = known
    return known.exact


def probe_rows(model: TokenModel) -> list[list[int]]:
    """Three rows of arbitrary tokens of different lengths, longest first, for finding out how a model behaves."""
    vocabulary = model.hf_model.get_input_embeddings().num_embeddings
    return [[(7919 * (index + 1) + 31 * length) % vocabulary for index in range(length)] for length in _PROBE_LENGTHS]


@dataclass(frozen=True)
class _Seen:
    """What a pass over padded rows showed of each: the logits of its last token, its residuals at all of its tokens."""

    logits: Float[Tensor, "row vocab"]
    residuals: list[Float[Tensor, "_ layer hidden"]]


def _probe_padding(model: TokenModel, surveyed: bool) -> bool:
    rows = probe_rows(model)
    layers: list[nn.Module] = list(model.layers) if surveyed else []  # type: ignore[attr-defined]
    alone = [_see(model, pad_left([row], 0, model.device), layers) for row in rows]
    together = _Seen(
        torch.cat([one.logits for one in alone]), [residual for one in alone for residual in one.residuals]
    )
    told = replace(pad_left(rows[:1], 0, model.device), padded=True)  # mask and positions, without any padding
    try:
        return (
            _differ(_see(model, told, layers), alone[0], model.dtype) < _SAME_SHAPES
            and _agree_padded(model, rows, together, layers)
            and _agree_padded(model, rows[-1:], alone[-1], layers, least=_FAR)
        )
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:  # not made for padding
        if is_out_of_memory(error):
            raise
        return False


def _agree_padded(model: TokenModel, rows: Rows, alone: _Seen, layers: Sequence[nn.Module], *, least: int = 0) -> bool:
    padded, other_pad = (
        _see(model, pad_left(rows, pad, model.device, least=least), layers)
        for pad in (pad_id(model), probe_rows(model)[0][0])
    )
    return (
        _differ(padded, alone, model.dtype) < limit(model.dtype)
        and _differ(other_pad, padded, model.dtype) < _SAME_SHAPES
    )


def _see(model: TokenModel, batch: Batch, layers: Sequence[nn.Module]) -> _Seen:
    if not layers:
        return _Seen(last_logits(model, batch, 1)[:, -1], [])
    hidden: int = model.hidden  # type: ignore[attr-defined]
    with residuals_taken(layers, batch.input_ids, hidden, lambda stream: stream.to("cpu", copy=True)) as taken:
        # all logits: where fewer are asked for, Gemma 4 runs its last layers on fewer tokens
        logits = last_logits(model, batch, batch.input_ids.shape[1])[:, -1]
    stack = torch.stack(taken, dim=2)
    lengths = batch.attention_mask.sum(dim=-1).tolist()
    return _Seen(logits, [stack[row, -length:] for row, length in enumerate(lengths)])


def _differ(found: _Seen, expected: _Seen, dtype: torch.dtype) -> float:
    """The larger of the differences of logits and of residuals."""
    residuals = (residual_difference(*pair, dtype) for pair in zip(found.residuals, expected.residuals, strict=True))
    return max(logits_difference(found.logits, expected.logits), *residuals, 0.0)


def unless_out_of_memory(work: Callable[[], Result], *, single: bool) -> tuple[Result] | None:
    """The result in a tuple, or None where memory ran out and a smaller group may still fit."""
    try:
        return (work(),)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        if single:
            raise ModelError(
                "one row does not fit in memory beside the model",
                hint="use shorter prompts, fewer tokens, a smaller dtype, or `--device-map auto`",
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
