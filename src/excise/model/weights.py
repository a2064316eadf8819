"""Weights whose numbers are not simply there: packed by a quantised backend, scaled elsewhere, or offloaded.

No backend is known by name, but for one habit of bitsandbytes. What a packed weight is, its module tells: by what it
returns for unit vectors, and by its derivative.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_AT_ONCE = 1 << 26  # numbers of a product with unit vectors
_AGREE = 0.1  # 8-bit products round their inputs: they are within a few per cent of what their derivative says


def is_plain(weight: Tensor) -> bool:
    """Whether a weight's values are its values: not packed, not scaled elsewhere, and here."""
    return not is_packed(weight) and not weight.is_meta


def is_packed(weight: Tensor) -> bool:
    """Whether a quantised backend holds a weight, in another form than that of its numbers."""
    return type(weight.data) is not Tensor or weight.dtype not in _PLAIN


def is_quantised(model: nn.Module) -> bool:
    """Whether some of a model's weights are packed."""
    return any(map(is_packed, model.parameters()))


def length_of(parameter: Tensor) -> int:
    """How many numbers a parameter stands for: a packed one may hold fewer."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return parameter.numel() if shape is None else math.prod(shape)


def is_product(module: nn.Module) -> bool:
    """Whether a module does nothing but multiply its input by its one matrix, so that changing its input will do."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    return len(matrices) == 1 and matrices[0].ndim == 2 and next(module.children(), None) is None


def compute_device(module: nn.Module) -> torch.device:
    """Where the module computes: an offloaded weight is brought there by its hook."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is not None:
        return torch.device(device)
    return next(module.parameters()).device


def compute_dtype(model: nn.Module, module: nn.Module) -> torch.dtype:
    """What the module takes: that of its weight, or of its dequantised weight, or else the model's."""
    weight = next(module.parameters())
    if weight.dtype in _PLAIN:
        return weight.dtype
    packed: Any = getattr(weight, "quant_state", None)
    known: Any = getattr(packed, "dtype", None) or getattr(model, "dtype", torch.float32)
    assert isinstance(known, torch.dtype)
    return known


def width_of(module: nn.Module) -> int:
    """How long the inputs of a product are."""
    return int(module.in_features)  # type: ignore[arg-type]


def derivative(
    model: nn.Module, module: nn.Module, directions: Float[Tensor, "row hidden"]
) -> Float[Tensor, "row width"] | None:
    """Wᵀr for each direction by a product's own vector-Jacobian product, in fp32; None where it has none.

    Some kernels have none and do not say so: the result is compared with what the module returns for it.
    """
    device, dtype = compute_device(module), compute_dtype(model, module)
    zero = torch.zeros(len(directions), width_of(module), device=device, dtype=dtype)
    with torch.enable_grad():
        leaf = zero.clone().requires_grad_(True)
        output = module(leaf)
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        try:
            (found,) = torch.autograd.grad((output.float() * directions.to(output.device)).sum(), leaf)
        except (RuntimeError, NotImplementedError):
            return None
    found = found.float()
    with torch.no_grad():  # r·W(Wᵀr) = |Wᵀr|²
        lengths = found.square().sum(dim=-1)
        largest = found.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        there: Tensor = module((found / largest).to(dtype)).float() - module(zero).float()
        again = (there * directions.to(there.device)).sum(dim=-1) * largest[:, 0].to(there.device)
    agree = (again - lengths.to(again.device)).abs() <= _AGREE * lengths.to(again.device)
    return found if bool(agree.all()) else None


def differentiates(model: nn.Module) -> bool:
    """Whether gradients pass every packed product of a model as they should."""
    for module in _packed_products(model):
        with torch.no_grad():
            inputs = torch.zeros(1, width_of(module), device=compute_device(module), dtype=compute_dtype(model, module))
            outputs: Tensor = module(inputs)
        row = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
        if derivative(model, module, row) is None:
            return False
    return True


def numbers_of(model: nn.Module, module: nn.Module, *, axis: int) -> Float[Tensor, "out in"]:
    """The matrix of a product, whatever it is packed in, in fp32: what it returns for unit vectors.

    axis  which of its axes is that of the outputs
    """
    device, dtype, width = compute_device(module), compute_dtype(model, module), width_of(module)
    with torch.no_grad():
        none: Tensor = module(torch.zeros(1, width, device=device, dtype=dtype)).float()
        rows = max(_AT_ONCE // max(width, none.shape[-1]), 1)
        parts = []
        for start in range(0, width, rows):
            units = torch.zeros(min(rows, width - start), width, device=device, dtype=dtype)
            units.diagonal(start).fill_(1.0)
            parts.append(module(units).float() - none)
    columns = torch.cat(parts)
    return columns.movedim(-1, axis).contiguous()


def without_repacking(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew for CPUs with AVX512 at their first use.

    The kernel for that form has no derivative, and PyTorch then computes gradients as if the product were not there; it
    also asks for shapes that not every model has.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


def _packed_products(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        known = is_product(module) and hasattr(module, "in_features")  # an embedding takes no numbers
        if known and any(map(is_packed, module.parameters())):
            yield module
