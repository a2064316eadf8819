"""What one call of a writer wrote along a direction, split over its input features.

Glossary: W the weight, x an input, y = Wx the write, a the gradient of what is measured at y. Then a·y is what the
write adds to it, and x ⊙ Wᵀa splits that over the inputs exactly; for a bank of experts, so does W ⊙ ∂(a·y)/∂W.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.analysis.cuts import Call, loose
from excise.model.precision import is_out_of_memory
from excise.model.weights import is_plain, is_product

_EXPERTS_AT_ONCE = 8


def by_input(model: nn.Module, call: Call, gradient: Float[Tensor, "... hidden"]) -> Float[Tensor, "*column"] | str:
    """What every input feature (of every expert) added, over all tokens, in fp64 on the CPU; or why it cannot be told.

    gradient  of what is measured, at the output of the call
    """
    assert call.writer.module is not None
    module, weight = model.get_submodule(call.writer.module), model.get_parameter(call.writer.parameter)
    split = _of_product if is_product(module) else _of_bank
    try:
        return split(module, weight, call, gradient)
    except (RuntimeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        return f"{type(module).__name__} cannot be differentiated ({_first_line(error)})"


def _of_product(
    module: nn.Module, weight: Tensor, call: Call, gradient: Float[Tensor, "... hidden"]
) -> Float[Tensor, " width"] | str:
    given: Any = call.args[0] if call.args else next(iter(call.kwargs.values()))
    rows, inputs = gradient.flatten(0, -2), given.detach().flatten(0, -2)
    counts = rows.any(dim=-1)  # the tokens that are looked at, and of an expert those that were sent to it
    rows, inputs = rows[counts], inputs[counts]
    if is_plain(weight) and weight.shape[call.writer.axis] == rows.shape[-1]:
        back = rows.float() @ weight.detach().movedim(call.writer.axis, 0).float()
    else:  # packed: only the module knows its weight
        with torch.enable_grad():
            leaf = inputs.clone().requires_grad_()
            output = module.forward(leaf)
        if not output.requires_grad:
            return f"the weight of {type(module).__name__} is packed, and it has no derivative"
        (back,) = torch.autograd.grad(output, [leaf], grad_outputs=rows.to(output.dtype))
    added: Tensor = (inputs.cpu().double() * back.cpu().double()).sum(dim=0)
    return added


def _of_bank(
    module: nn.Module, weight: Tensor, call: Call, gradient: Float[Tensor, "... hidden"]
) -> Float[Tensor, "*column"] | str:
    if not is_plain(weight):
        return f"the weight of {type(module).__name__} is packed or offloaded"
    weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            output = module.forward(
                *(loose(value) for value in call.args), **{name: loose(value) for name, value in call.kwargs.items()}
            )
        found = _gradient(output, weight, gradient)
    finally:
        weight.requires_grad_(False)
    if found is None:
        return f"{type(module).__name__} is given its weight by another module"
    axis = call.writer.axis
    parts = zip(weight.detach().split(_EXPERTS_AT_ONCE), found.split(_EXPERTS_AT_ONCE), strict=True)
    if axis == 0:
        return torch.stack([(one.float() * other.float()).sum(dim=0) for one, other in parts]).sum(dim=0).cpu().double()
    return torch.cat([(one.float() * other.float()).sum(dim=axis).cpu().double() for one, other in parts])


def _gradient(output: Tensor, weight: Tensor, at_output: Tensor) -> Tensor | None:
    """∂/∂W; None where the output was computed from something else than this very parameter."""
    if not output.requires_grad:
        return None
    gradient: Tensor | None = torch.autograd.grad(output, [weight], grad_outputs=at_output, allow_unused=True)[0]
    return gradient


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
