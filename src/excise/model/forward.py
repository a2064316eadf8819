"""Forward passes over rows of different lengths: padded on the left, with the masks and positions that make a row's
result the one it has on its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from excise.errors import ModelError
from excise.model.inputs import text_module
from excise.progress import Progress, silent

Rows = Sequence[Sequence[int]]
Result = TypeVar("Result")

_PADDING_EXACT: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_PROBE_LENGTHS = (21, 13, 6)


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


def pad_left(rows: Rows, pad: int, device: torch.device | str) -> Batch:
    """One batch of `rows`, none of which may be empty. `pad` may be any id: it is masked."""
    width = max(len(row) for row in rows)
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
    limit, done = batch_size, 0
    while waiting:
        group = waiting.pop()
        if len(group) > limit:
            waiting += [group[limit:], group[:limit]]
            continue
        result = _unless_out_of_memory(partial(work, group), single=len(group) == 1)
        if result is None:
            limit = (len(group) + 1) // 2
            waiting.append(group)
            continue
        results.append((group, result[0]))
        done += len(group)
        progress(label, done, len(rows), "rows")
    return results


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


def last_logits(model: TokenModel, batch: Batch, last: int) -> Float[Tensor, "row last vocab"]:
    """Raw logits of the `last` positions of every row; nothing else goes through the LM head where that can be had."""
    reader = text_module(model.hf_model)
    options: dict[str, Any] = {"logits_to_keep": last} if accepts(reader, "logits_to_keep") else {}
    with torch.no_grad():
        output = reader(**inputs_of(reader, batch), **options)
    kept: Tensor = output.logits[:, -last:]
    return kept


def inputs_of(module: nn.Module, batch: Batch) -> dict[str, Any]:
    """Keyword arguments of `module.forward` for a batch, as far as it takes them; no cache is built."""
    offered: dict[str, Any] = {"position_ids": batch.position_ids, "use_cache": False}
    if batch.padded:
        offered["attention_mask"] = batch.attention_mask
    known = {name: value for name, value in offered.items() if accepts(module, name)}
    return {"input_ids": batch.input_ids, **known}


def accepts(module: nn.Module, name: str) -> bool:
    """Whether `module.forward` names this parameter (wrappers are looked through)."""
    parameters = inspect.signature(module.forward).parameters
    return name in parameters


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
    model: TokenModel, prompt_ids: Rows, continuation_ids: Rows, *, rows: Sequence[int] | None = None
) -> Continuations:
    """One pass over prompt + continuation for the given rows (all by default): what predicts each continuation token.

    Both lists must have rows of at least one token. The LM head runs on the last positions only. The caller chooses
    rows so that row × token × vocabulary fits in memory (`rows_that_fit`).
    """
    chosen = list(range(len(prompt_ids)) if rows is None else rows)
    full = [[*prompt_ids[index], *continuation_ids[index]][:-1] for index in chosen]
    answers = pad_left([continuation_ids[index] for index in chosen], 0, model.device)
    width = answers.input_ids.shape[1]
    logits = last_logits(model, pad_left(full, pad_id(model), model.device), width)
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
    """Whether left padding leaves a row's logits what they are without it (linear-attention layers may leak).

    Found once per model by a probe: three rows of different lengths, together and each on its own.
    """
    if model.hf_model not in _PADDING_EXACT:
        _PADDING_EXACT[model.hf_model] = _probe_padding(model)
    return _PADDING_EXACT[model.hf_model]


def probe_rows(model: TokenModel) -> list[list[int]]:
    """Three rows of arbitrary tokens of different lengths, longest first, for finding out how a model behaves."""
    vocabulary = model.hf_model.get_input_embeddings().num_embeddings
    return [[(7919 * (index + 1) + 31 * length) % vocabulary for index in range(length)] for length in _PROBE_LENGTHS]


def logits_agree(found: Float[Tensor, "row vocab"], expected: Float[Tensor, "row vocab"], dtype: torch.dtype) -> bool:
    """Whether two computations of the same logits differ by no more than rounding does.

    As a share of the logits' spread: 1e-3 in fp32. In bf16 the order of sums alone moves a 30-layer model by up to 0.1,
    and a wrong mask or position by about 1, so the limit is 0.25 there.
    """
    return _difference(found, expected) < (1e-3 if dtype in (torch.float32, torch.float64) else 0.25)


def _probe_padding(model: TokenModel) -> bool:
    rows = probe_rows(model)
    together = last_logits(model, pad_left(rows, pad_id(model), model.device), 1)[:, -1]
    other_pad = last_logits(model, pad_left(rows, rows[0][0], model.device), 1)[:, -1]
    alone = torch.cat([last_logits(model, pad_left([row], 0, model.device), 1)[:, -1] for row in rows])
    # Same shapes, so the same rounding: what the padding says must not matter even in bf16, or hardly (experts).
    return logits_agree(together, alone, model.dtype) and _difference(other_pad, together) < 0.05


def _difference(found: Float[Tensor, "row vocab"], expected: Float[Tensor, "row vocab"]) -> float:
    """The largest root-mean-square difference of a row, as a share of the spread of its logits; infinite for NaN."""
    exact = expected.float()
    error = (found.float() - exact).square().mean(dim=-1).sqrt() / exact.std(dim=-1).clamp(min=1e-12)
    return error.nan_to_num(nan=torch.inf).max().item()


def _unless_out_of_memory(work: Callable[[], Result], *, single: bool) -> tuple[Result] | None:
    """The result in a tuple, or None where memory ran out and a smaller group may still fit."""
    try:
        return (work(),)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        message = str(error).lower()
        if "out of memory" not in message and "can't allocate memory" not in message:
            raise
        if single:
            raise ModelError(
                "one row does not fit in memory beside the model",
                hint="use shorter prompts, fewer tokens, a smaller dtype, or `--device-map auto`",
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None
