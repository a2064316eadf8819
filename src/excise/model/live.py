"""Applying an edit to a loaded model, reversibly.

Wherever the survey found a module whose output is exactly one write, hooks act on activations: O(hidden) per token, no
copy of any weight, on any backend (quantised, offloaded). Everything else (a mask or a norm-preserving change of a
fused expert bank, a lone vector, an embedding with column norms) swaps the weight itself for the edited one and puts
the original tensor back afterwards. Both compute with `excise.edit.operators`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.edit import Change, Edit, LowRank, Mask, Projection, SiteEdit, Writer, operators
from excise.errors import EditError, EditMismatchError
from excise.model.weights import is_packed, is_plain, is_product, numbers_of


@contextmanager
def applied(model: nn.Module, edit: Edit, *, exact: bool = False) -> Iterator[None]:
    """The model behaves as edited inside the block, and is bit for bit what it was after it, errors included.

    exact  weights that have to be swapped stay in fp32, not rounded to their dtype: for a stream that is fp32

    Raises `EditMismatchError` for an edit whose writers this model does not have.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for site in edit.sites:
        check(site, parameters)
    with ExitStack() as stack:
        for site in edit.sites:
            if hookable(model, site):
                _hook(model, site, stack)
            else:
                _swap(site, parameters, stack, exact=exact)
        yield


def check(site: SiteEdit, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise `EditMismatchError` unless the model with these parameters has the writer of a site, at its width."""
    writer = site.writer
    parameter = parameters.get(writer.parameter)
    if parameter is None:
        raise EditMismatchError(
            f"the edit changes {writer.parameter}, which this model does not have",
            hint="use the model that the edit was made for",
        )
    for change in site.changes:
        # a quantised weight is stored packed: its shape says nothing
        misfit = "" if is_packed(parameter) else change.misfit(parameter.shape, axis=writer.axis)
        if misfit:
            raise EditMismatchError(
                f"{misfit}; {writer.parameter} is {tuple(parameter.shape)}",
                hint="use the model that the edit was made for",
            )


def hookable(model: nn.Module, site: SiteEdit) -> bool:
    """Whether all that an edit does to a writer can be done to the activations of the writer's module."""
    writer = site.writer
    if writer.module is None:
        return False
    if all(_on_outputs(change) for change in site.changes):
        return True
    if writer.role == "embedding" or not is_product(model.get_submodule(writer.module)):
        return False
    return len(site.changes) == 1 or all(_on_outputs(change) or isinstance(change, LowRank) for change in site.changes)


def _on_outputs(change: Change) -> bool:
    """Whether it needs a writer's output alone (norms that are kept need the weight)."""
    return isinstance(change, Projection) and change.norm == "none"


def matrix_of(model: nn.Module, writer: Writer) -> Tensor:
    """The numbers of a writer's weight; of a packed or offloaded one, as its module multiplies with them."""
    weight = model.get_parameter(writer.parameter).detach()
    if is_plain(weight) or writer.module is None:
        return weight
    return numbers_of(model, model.get_submodule(writer.module), axis=writer.axis)


def _hook(model: nn.Module, site: SiteEdit, stack: ExitStack) -> None:
    assert site.writer.module is not None
    module = model.get_submodule(site.writer.module)
    projections = [change for change in site.changes if isinstance(change, Projection)]
    for change in site.changes:
        if isinstance(change, Mask):
            stack.callback(module.register_forward_pre_hook(_scale_hook(change.scale)).remove)
    if any(change.norm == "column" for change in projections):
        scale = operators.column_scale(matrix_of(model, site.writer), projections[0], axis=site.writer.axis)
        stack.callback(module.register_forward_pre_hook(_scale_hook(scale)).remove)
    if projections:
        stack.callback(module.register_forward_hook(_projection_hook(projections)).remove)
    for change in site.changes:
        if isinstance(change, LowRank):  # after projections, which act on what the base weight writes
            stack.callback(module.register_forward_hook(_low_rank_hook(change)).remove)
    for head in tied_heads(site.writer):
        stack.callback(model.get_submodule(head).register_forward_pre_hook(_input_projection_hook(projections)).remove)


def tied_heads(writer: Writer) -> list[str]:
    """The modules that use the same tensor as an output matrix: it changes too, and h·W'ᵀ = (Ph)·Wᵀ."""
    modules = (name.rpartition(".")[0] for name in writer.tied)
    return [name for name in modules if name != writer.module]


def _projection_hook(projections: list[Projection]) -> Callable[..., Tensor]:
    project = _Projector(projections)

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return project(output)

    return hook


def _input_projection_hook(projections: list[Projection]) -> Callable[..., tuple[Any, ...]]:
    project = _Projector(projections)

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (project(args[0]), *args[1:])

    return hook


class _Projector:
    """y − Σ λ VᵀV y in fp32, with the directions moved to each device once."""

    def __init__(self, projections: list[Projection]) -> None:
        self.rows = torch.cat([change.directions for change in projections])
        strengths = [torch.full((len(change.directions), 1), change.strength) for change in projections]
        self.weighted = self.rows * torch.cat(strengths)
        self.on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, output: Float[Tensor, "... hidden"]) -> Float[Tensor, "... hidden"]:
        if output.device not in self.on_device:
            self.on_device[output.device] = self.rows.to(output.device), self.weighted.to(output.device)
        rows, weighted = self.on_device[output.device]
        exact = output.float()
        return (exact - (exact @ rows.T) @ weighted).to(output.dtype)


def _scale_hook(scale: Tensor) -> Callable[..., tuple[Any, ...]]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return ((args[0].float() * scale.to(args[0].device)).to(args[0].dtype), *args[1:])

    return hook


def _low_rank_hook(change: LowRank) -> Callable[..., Tensor]:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        left, right = change.left.to(output.device).float(), change.right.to(output.device).float()
        changed: Tensor = output.float() + (args[0].float() @ right.T) @ left.T
        return changed.to(output.dtype)

    return hook


def _swap(site: SiteEdit, parameters: dict[str, nn.Parameter], stack: ExitStack, *, exact: bool) -> None:
    writer = site.writer
    weight = parameters[writer.parameter]
    if not is_plain(weight):
        raise EditError(
            f"{writer.parameter} is quantised or offloaded, and this change of it needs the weight itself",
            hint='use projections with norm="none", or load the model unquantised on one device',
        )
    _replace(weight, operators.apply(_base(weight, exact=exact), site.changes, axis=writer.axis), stack)
    if writer.bias is not None:
        bias = parameters[writer.bias]
        _replace(bias, operators.apply_bias(_base(bias, exact=exact), site.changes), stack)


def _base(parameter: nn.Parameter, *, exact: bool) -> Tensor:
    """The values of a parameter; `exact`: in fp32 at least."""
    values = parameter.detach()
    return values.float() if exact and values.dtype.itemsize < torch.float32.itemsize else values


def _replace(parameter: nn.Parameter, value: Tensor, stack: ExitStack) -> None:
    original = parameter.data
    parameter.data = value

    def restore() -> None:
        parameter.data = original

    stack.callback(restore)
