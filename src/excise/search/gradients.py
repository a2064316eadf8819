"""The state that a model is in while gradients pass it: weights frozen and, where memory is short, little kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from excise.model.trace import attached


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight asks for a gradient inside the block; afterwards each does as before.

    The LM head is given its input in one piece. It reads the last positions of every row, which are none; where the
    weight asks for no gradient, PyTorch then makes a copy of the weight for every row (on the CPU: gigabytes, and
    longer than all layers take).
    """
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        with _whole_inputs(model):
            yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def _whole_inputs(model: nn.Module) -> Iterator[None]:
    find: Any = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if not isinstance(head, nn.Module):
        yield
        return

    def whole(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.contiguous() if isinstance(value, Tensor) else value for value in args)

    with attached(head.register_forward_pre_hook(whole)):
        yield


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
