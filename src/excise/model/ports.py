"""Ports: where a writer's write can be read and changed while the model runs, without touching its weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.edit import Writer
from excise.model.survey import Survey
from excise.model.weights import compute_device, derivative, is_plain, is_product, numbers_of

Reads = Literal["input", "output", "projection"]
SIGNS = 32
"""Random vectors by which the length of a packed weight is told."""


@dataclass(frozen=True)
class Port:
    """One writer and the most that can be done to it by hooks.

    reads  what decides how much is written along a direction:
           "input"       any linear function of the writer's input (a plain product: one matrix, used once per token)
           "output"      any linear function of what it writes (a fused bank of experts)
           "projection"  its write along that direction alone (separate experts, banks with biases)
    """

    writer: Writer
    module: str
    reads: Reads


@dataclass(frozen=True)
class Ports:
    """The ports of a model.

    found     by layer
    left_out  writers that no hook reaches, embeddings aside: they stay as they are
    """

    found: tuple[Port, ...]
    left_out: tuple[Writer, ...]


def ports_of(model: nn.Module, survey: Survey) -> Ports:
    """Every writer's port, embeddings left out: a write of theirs is no computation of the model."""
    found, left_out = [], []
    for writer in survey.writers:
        if writer.role == "embedding":
            continue
        if writer.module is None:
            left_out.append(writer)
        else:
            found.append(Port(writer, writer.module, _reads(model, writer)))
    return Ports(tuple(found), tuple(left_out))


def read_directions(
    model: nn.Module, port: Port, directions: Float[Tensor, "row hidden"]
) -> Float[Tensor, "row width"]:
    """Wᵀr for each direction, as a function of what the port reads; fp32, on the device of the weight.

    For a packed (quantised) or offloaded weight it is the module's own vector-Jacobian product; where that is missing
    or wrong, it follows from the products that the module returns.
    """
    module = model.get_submodule(port.module)
    if port.reads != "input":
        return directions
    weight = model.get_parameter(port.writer.parameter)
    if is_plain(weight):
        columns = weight.detach().float().movedim(port.writer.axis, 0)
        return directions.to(weight.device) @ columns
    back = derivative(model, module, directions)
    if back is None:
        return directions.to(compute_device(module)) @ numbers_of(model, module, axis=0)
    return back


def length_of_weight(model: nn.Module, port: Port, *, hidden: int) -> float:
    """‖W‖ (Frobenius) of a port that reads its input; of a packed or offloaded weight to a few per cent.

    For r of independent signs the mean of |Wᵀr|² is ‖W‖² (Hutchinson 1989).
    """
    weight = model.get_parameter(port.writer.parameter)
    if is_plain(weight):
        return float(weight.detach().float().norm())
    signs = 2.0 * torch.randint(2, (SIGNS, hidden), generator=torch.Generator().manual_seed(0)) - 1.0
    return float(read_directions(model, port, signs).norm()) / math.sqrt(SIGNS)


def change_hook(
    change: Callable[[Float[Tensor, "... width"]], Float[Tensor, "... hidden"]], *, reads: Reads
) -> Callable[..., Any]:
    """A forward hook that adds `change(what the port reads)`, in fp32, to what the module returns."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        read = args[0] if reads == "input" else output
        return (output.float() + change(read.float())).to(output.dtype)

    return hook


def _reads(model: nn.Module, writer: Writer) -> Reads:
    assert writer.module is not None
    module = model.get_submodule(writer.module)
    if writer.role != "expert" and is_product(module):
        return "input"
    if writer.expert_axis is not None and writer.bias is None and is_plain(model.get_parameter(writer.parameter)):
        return "output"
    return "projection"
