"""The state that a model is in while gradients pass it: weights frozen and, where memory is short, little kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight asks for a gradient inside the block; afterwards each does as before."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def recomputed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Activations inside a decoder layer are computed again when gradients need them (gradient checkpointing)."""
    with ExitStack() as stack:
        for layer in layers:
            forward = layer.forward
            if "forward" in vars(layer):  # put there by Accelerate, for offloaded weights
                stack.callback(setattr, layer, "forward", forward)
            else:
                stack.callback(vars(layer).pop, "forward")
            layer.forward = partial(checkpoint, forward, use_reentrant=False)
        yield
