"""Whether a module keeps the rows of a batch apart and in order: what computing each row with its own edit rests on.

Most modules have the rows as their first axis. Some flatten them: (row × token, hidden), row after row, is as good.
Others have tokens first, share one row among all, or see whichever tokens were routed to them. Which is the case is
proven by a probe: where the rows of a batch change places, so must what the module is given and returns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor, nn

from excise.errors import SharedBatchError
from excise.model.forward import TokenModel, last_logits, pad_id, pad_left, padding_is_exact, probe_rows
from excise.model.trace import attached

_ORDER = (2, 0, 1)
_ROUNDING = 0.25
"""Of the difference between two rows: one row in two places of a batch differs by far less, even in half precision."""


@dataclass(frozen=True)
class Layout:
    """Whether the rows are apart and in order in a module's first input, and in its output.

    ran  whether the probe ran it: text alone skips the layers that look at images, and then nothing is known
    """

    inputs: bool
    outputs: bool
    ran: bool = True


_LAYOUTS: WeakKeyDictionary[nn.Module, dict[str, Layout]] = WeakKeyDictionary()


def layouts(model: TokenModel, modules: Collection[str]) -> Mapping[str, Layout]:
    """The layout of each of `modules`, found once per model by a few passes over three short rows."""
    known = _LAYOUTS.setdefault(model.hf_model, {})
    unknown = [name for name in dict.fromkeys(modules) if name not in known]
    if unknown:
        known.update(_probe(model, unknown))
    return {name: known[name] for name in modules}


def rule_out(model: TokenModel, module: str) -> None:
    """Remember that a module turned out not to keep rows apart."""
    _LAYOUTS.setdefault(model.hf_model, {})[module] = Layout(inputs=False, outputs=False)


def by_row(values: Float[Tensor, "*place width"], rows: int, *, module: str) -> Float[Tensor, "row place width"]:
    """What a module is given or returns, with an axis for the rows in front and all else in one.

    Raises `SharedBatchError` for a shape that does not have so many rows.
    """
    if not _has_rows(values, rows):
        raise SharedBatchError(
            f"{module} computes a tensor of shape {tuple(values.shape)} for {rows} rows: they cannot be told apart",
            module=module,
        )
    return values.reshape(rows, -1, values.shape[-1])


def _has_rows(values: Tensor, rows: int) -> bool:
    return values.shape[0] == rows if values.ndim > 2 else values.ndim == 2 and values.shape[0] % rows == 0


@dataclass
class _Calls:
    """What a module was given and what it returned, call by call; None for what is no tensor of numbers."""

    inputs: list[Tensor | None]
    outputs: list[Tensor | None]


def _probe(model: TokenModel, modules: Sequence[str]) -> dict[str, Layout]:
    rows = probe_rows(model)
    batches = [[row[: len(rows[-1])] for row in rows]]
    if padding_is_exact(model):
        batches.append(rows)  # with padding: some take it out, and flatten what is left
    pairs = [(_watch(model, each, modules), _watch(model, [each[row] for row in _ORDER], modules)) for each in batches]
    return {
        name: Layout(
            inputs=all(_in_order(before[name].inputs, after[name].inputs) for before, after in pairs),
            outputs=all(_in_order(before[name].outputs, after[name].outputs) for before, after in pairs),
            ran=any(calls[name].outputs for pair in pairs for calls in pair),
        )
        for name in modules
    }


def _watch(model: TokenModel, rows: Sequence[Sequence[int]], modules: Sequence[str]) -> dict[str, _Calls]:
    seen = {name: _Calls([], []) for name in modules}

    def watching(calls: _Calls) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls.inputs.append(_numbers(args[0] if args else None))
            calls.outputs.append(_numbers(output))

        return hook

    batch = pad_left(rows, pad_id(model), model.device)
    with ExitStack() as hooks:
        for name, calls in seen.items():
            hooks.enter_context(attached(model.hf_model.get_submodule(name).register_forward_hook(watching(calls))))
        last_logits(model, batch, batch.input_ids.shape[1])
    return seen


def _numbers(value: Any) -> Tensor | None:
    return value.detach().clone() if isinstance(value, Tensor) and value.is_floating_point() else None


def _in_order(before: Sequence[Tensor | None], after: Sequence[Tensor | None]) -> bool:
    if not before or len(before) != len(after):
        return False
    return all(
        first is not None and second is not None and first.shape == second.shape and _moved(first, second)
        for first, second in zip(before, after, strict=True)
    )


def _moved(before: Tensor, after: Tensor) -> bool:
    """Whether each row is found where it was moved to, rather than where another was before."""
    count = len(_ORDER)
    if not (_has_rows(before, count) and before.numel()):
        return False
    first, second = (each.float().reshape(count, -1, each.shape[-1]) for each in (before, after))
    # the median token: padding may be NaN, and in half precision one whose experts are nearly tied goes to other ones
    expected, unmoved = ((row - second).norm(dim=-1).nanmedian() for row in (first[list(_ORDER)], first))
    return bool(expected <= _ROUNDING * unmoved)
