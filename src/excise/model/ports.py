"""Ports: where a writer's write can be read and changed while the model runs, without touching its weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.edit import Writer
from excise.model.live import is_product
from excise.model.survey import Survey

Reads = Literal["input", "output", "projection"]


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

    For a packed (quantised) or offloaded weight it is the module's own vector-Jacobian product.
    """
    module = model.get_submodule(port.module)
    if port.reads != "input":
        return directions
    weight = model.get_parameter(port.writer.parameter)
    if weight.is_floating_point() and not weight.is_meta:
        columns = weight.detach().float().movedim(port.writer.axis, 0)
        return directions.to(weight.device) @ columns
    width = int(module.in_features)  # type: ignore[arg-type]
    device = compute_device(module)
    with torch.enable_grad():
        zero = torch.zeros(
            len(directions), width, device=device, dtype=_compute_dtype(model, module), requires_grad=True
        )
        written = (module(zero).float() * directions.to(device)).sum()
        (gradient,) = torch.autograd.grad(written, zero)
    return gradient.float()


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
    if writer.expert_axis is not None and writer.bias is None:
        weight = model.get_parameter(writer.parameter)
        if weight.is_floating_point() and not weight.is_meta:
            return "output"
    return "projection"


def compute_device(module: nn.Module) -> torch.device:
    """Where the module computes: an offloaded weight is brought there by its hook."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return torch.device(device)
    return next(module.parameters()).device


def _compute_dtype(model: nn.Module, module: nn.Module) -> torch.dtype:
    """What the module takes: that of its weight, or of its dequantised weight, or else the model's."""
    weight = next(module.parameters())
    if weight.is_floating_point():
        return weight.dtype
    packed: Any = getattr(weight, "quant_state", None)
    known: Any = getattr(packed, "dtype", None) or getattr(model, "dtype", torch.float32)
    assert isinstance(known, torch.dtype)
    return known
