"""Products whose weights are stored as integers with a step per row, as quantised backends store them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Product(torch.autograd.Function):
    """As in bitsandbytes, the graph shows no matrix."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, step: Tensor) -> Tensor:
        ctx.stored = weight, step
        return inputs @ (weight.to(inputs.dtype) * step.to(inputs.dtype)).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        weight, step = ctx.stored
        return gradient @ (weight.to(gradient.dtype) * step.to(gradient.dtype)), None, None


class Packed(nn.Module):
    """A linear layer.

    derivative  without it, gradients stop here, and nothing says so
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, derivative: bool = True) -> None:
        super().__init__()
        self.in_features = weight.shape[1]
        self.derivative = derivative
        self.register_buffer("step", weight.abs().amax(dim=1, keepdim=True) / 127)
        self.weight = nn.Parameter((weight / self.step).round().to(torch.int8), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias)

    @property
    def numbers(self) -> Tensor:
        """What it multiplies by."""
        return self.weight.float() * self.step

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs if self.derivative else inputs.detach()
        product: Tensor = _Product.apply(inputs, self.weight, self.step)
        return product if self.bias is None else product + self.bias


def pack(model: nn.Module, *, derivative: bool = True) -> None:
    """Pack all linear layers of a model but its head, in place."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and child is not head:
                bias = None if child.bias is None else child.bias.data
                setattr(parent, name, Packed(child.weight.data, bias, derivative=derivative))
