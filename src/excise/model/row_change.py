"""What several edits do to one writer, each on its own rows of the batch: the twins of the hooks in `live`.

Parameters of all edits are stacked, ranks padded with zeros; a pass gathers those of each of its rows. That is
O(hidden) per token, whatever the number of edits, and an edit that leaves the writer as it is changes nothing there.

Glossary: V directions, λ strength, B and A the factors of a low-rank change, c the scale of every
column, which a mask or a kept column length asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from excise.edit import Change, LowRank, Mask, Projection, Writer, operators
from excise.errors import SharedBatchError
from excise.model.live import matrix_of, tied_heads
from excise.model.row_groups import Population
from excise.model.row_layout import by_row

ROW_WISE = (Projection, LowRank, Mask)
"""The changes that can be computed row by row."""


def attach(
    model: nn.Module,
    writer: Writer,
    changes: Sequence[Sequence[Change]],
    population: Population,
    stack: ExitStack,
) -> None:
    """Change what one writer writes, on the rows of each edit by that edit's `changes`, until `stack` is closed.

    changes  of this writer by each edit of the population, in their order; none where an edit leaves it as it is
    """
    assert writer.module is not None
    module = model.get_submodule(writer.module)
    projections = [[change for change in some if isinstance(change, Projection)] for some in changes]
    low_ranks = [[change for change in some if isinstance(change, LowRank)] for some in changes]
    scales = _input_scales(model, writer, changes)
    if scales is not None:
        stack.callback(module.register_forward_pre_hook(_RowScale(scales, population, writer.module)).remove)
    if any(projections):
        projection = _RowProjection(projections, population, writer.module)
        stack.callback(module.register_forward_hook(projection.of_output).remove)
        for head in tied_heads(writer):
            hook = model.get_submodule(head).register_forward_pre_hook(projection.of_input(head))
            stack.callback(hook.remove)
    if any(low_ranks):  # after projections, which act on what the base weight writes
        low_rank = _RowLowRank(low_ranks, population, writer.module)
        stack.callback(module.register_forward_hook(low_rank).remove)


def guard(model: nn.Module, module: str, population: Population, stack: ExitStack) -> None:
    """Raise `SharedBatchError` where a module that was thought to be skipped is run on rows of several edits."""

    def refuse(_: nn.Module, __: Any) -> None:
        if population.assigned is not None:
            raise SharedBatchError(f"{module} is run, and nothing is known of how it keeps rows apart", module=module)

    stack.callback(model.get_submodule(module).register_forward_pre_hook(refuse).remove)


def _input_scales(
    model: nn.Module, writer: Writer, changes: Sequence[Sequence[Change]]
) -> Float[Tensor, "edit width"] | None:
    """What each edit multiplies the writer's inputs by, 1 where it leaves them; None where no edit changes them."""
    scales: list[Tensor | None] = [None] * len(changes)
    kept = any(isinstance(each, Projection) and each.norm == "column" for some in changes for each in some)
    weight = matrix_of(model, writer) if kept else model.get_parameter(writer.parameter).detach()
    for edit, some in enumerate(changes):
        for change in some:
            if isinstance(change, Mask):
                scales[edit] = change.scale.to(weight.device).float()
            elif isinstance(change, Projection) and change.norm == "column":
                scales[edit] = operators.column_scale(weight, change, axis=writer.axis)
    width = max((len(scale) for scale in scales if scale is not None), default=0)
    if not width:
        return None
    return torch.stack([torch.ones(width).to(weight.device) if each is None else each.expand(width) for each in scales])


class _PerEdit:
    """One tensor per edit; those of the rows of the next pass, on the device that asks for them."""

    def __init__(self, values: Float[Tensor, "edit ..."], population: Population) -> None:
        self.values = values
        self.population = population
        self.on_device: dict[torch.device, Tensor] = {}

    def rows(self, device: torch.device) -> Float[Tensor, "row ..."] | None:
        """None where rows are not assigned."""
        assigned = self.population.assigned_on(device)
        if assigned is None:
            return None
        if device not in self.on_device:
            self.on_device[device] = self.values.to(device)
        return self.on_device[device].index_select(0, assigned)


class _RowProjection:
    """y − Σ λ VᵀV y in fp32, with the V and λ of each row's edit."""

    def __init__(self, projections: Sequence[Sequence[Projection]], population: Population, module: str) -> None:
        self.module = module
        hidden = next(change.directions.shape[-1] for some in projections for change in some)
        self.directions = _PerEdit(
            _padded([[change.directions for change in some] for some in projections], hidden), population
        )
        strengths = [
            [torch.full((len(change.directions), 1), change.strength) for change in some] for some in projections
        ]
        self.strengths = _PerEdit(_padded(strengths, 1), population)

    def of_output(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """A forward hook of the writer's module."""
        return self(output, self.module)

    def of_input(self, module: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        """A hook on the input of another module, which has the same matrix transposed."""

        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (self(args[0], module), *args[1:])

        return hook

    def __call__(self, values: Float[Tensor, "... hidden"], module: str) -> Float[Tensor, "... hidden"]:
        directions, strengths = self.directions.rows(values.device), self.strengths.rows(values.device)
        if directions is None or strengths is None:
            return values
        exact = by_row(values.float(), len(directions), module=module)
        along = torch.bmm(exact, directions.mT) * strengths.mT
        return torch.baddbmm(exact, along, directions, alpha=-1).reshape(values.shape).to(values.dtype)


class _RowScale:
    """c ⊙ x in fp32, with the c of each row's edit: a hook on a module's input."""

    def __init__(self, scales: Float[Tensor, "edit width"], population: Population, module: str) -> None:
        self.module = module
        self.scales = _PerEdit(scales, population)

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        values: Tensor = args[0]
        scales = self.scales.rows(values.device)
        if scales is None:
            return args
        scaled = by_row(values.float(), len(scales), module=self.module) * scales[:, None]
        return (scaled.reshape(values.shape).to(values.dtype), *args[1:])


class _RowLowRank:
    """y + B A x in fp32, with the B and A of each row's edit: a forward hook."""

    def __init__(self, changes: Sequence[Sequence[LowRank]], population: Population, module: str) -> None:
        self.module = module
        first = next(change for some in changes for change in some)
        hidden, width = first.left.shape[-2], first.right.shape[-1]
        self.left = _PerEdit(
            _padded([[change.left.float().mT for change in some] for some in changes], hidden), population
        )
        self.right = _PerEdit(
            _padded([[change.right.float() for change in some] for some in changes], width), population
        )

    def __call__(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        left, right = self.left.rows(output.device), self.right.rows(output.device)
        if left is None or right is None:
            return output
        inputs = by_row(args[0].float(), len(right), module=self.module)
        exact = by_row(output.float(), len(left), module=self.module)
        changed = torch.baddbmm(exact, torch.bmm(inputs, right.mT), left)
        return changed.reshape(output.shape).to(output.dtype)


def _padded(rows: Sequence[Sequence[Float[Tensor, "_ width"]]], width: int) -> Float[Tensor, "edit rank width"]:
    """The rows of each edit, with rows of zeros up to the largest rank."""
    per_edit = [torch.cat([torch.zeros(0, width), *(part.cpu().float() for part in some)]) for some in rows]
    return pad_sequence(per_edit, batch_first=True)
