"""One forward pass with gradients, and what was seen of it: the calls of decoder layers, and who owns which output.

Nothing is looked up by name. A candidate for a decoder layer is any child of a module list that is given a floating
tensor (..., hidden) and returns one of the same shape; `excise.model.stack` decides which lists are the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from excise.model.inputs import run


@dataclass(frozen=True)
class Call:
    """One call of one candidate layer, in the order of the forward pass.

    layer    its module name
    sources  what computed its input streams: one in most models, two where layers are reversible
    results  what computed its output streams
    whole    whether gradients reach through all of them
    shape    of each stream
    stream   the first output itself, without gradients
    """

    layer: str
    sources: tuple[Node, ...]
    results: tuple[Node, ...]
    whole: bool
    shape: torch.Size
    stream: Tensor


@dataclass
class Trace:
    """What one pass showed; filled in while it runs.

    Nodes are kept rather than tensors: a later in-place addition would replace a tensor's own node.

    calls  of candidate layers, in the order in which they returned
    owned  for every module with parameters of its own: what computed its output, and the output's width
    """

    calls: list[Call] = field(default_factory=list)
    owned: dict[str, tuple[Node | None, int]] = field(default_factory=dict)

    @classmethod
    def record(cls, model: nn.Module, tokens: Int[Tensor, "rows length"], *, always: bool = False) -> Trace:
        """Run the model on `tokens` with gradients; gradient settings and hooks are as before afterwards.

        always  also where the model's own code switches gradients off
        """
        trace = cls()
        with ExitStack() as stack, torch.enable_grad():
            if always:
                stack.enter_context(_AlwaysGradients())
            for parameter in model.parameters():
                if parameter.is_floating_point() and not parameter.requires_grad:
                    parameter.requires_grad_(True)
                    stack.callback(parameter.requires_grad_, False)
            for name, module in _candidates(model):
                before, after = trace._watch(name)
                stack.enter_context(attached(module.register_forward_pre_hook(before, with_kwargs=True)))
                stack.enter_context(attached(module.register_forward_hook(after)))
            for name, module in model.named_modules():
                if next(module.parameters(recurse=False), None) is not None:
                    stack.enter_context(attached(module.register_forward_hook(trace._own(name))))
            run(model, tokens)
        return trace

    def _watch(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        pending: list[tuple[torch.Size, list[Node | None]] | None] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            streams = streams_in(args, kwargs)
            pending.append((streams[0].shape, [stream.grad_fn for stream in streams]) if streams else None)

        def after(_: nn.Module, __: Any, output: Any) -> None:
            given, streams = pending.pop(), streams_of(output)
            if given is None or not streams or streams[0].shape != given[0]:
                return
            sources, results = given[1], [stream.grad_fn for stream in streams]
            whole = None not in sources and None not in results
            present = [tuple(node for node in nodes if node is not None) for nodes in (sources, results)]
            self.calls.append(Call(name, present[0], present[1], whole, given[0], streams[0].detach()))

        return before, after

    def _own(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim:
                self.owned[name] = (output.grad_fn, output.shape[-1])

        return hook


class _AlwaysGradients(TorchFunctionMode):
    """Every operation is recorded, inside `torch.no_grad()` and custom autograd functions as well."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch.enable_grad():
            return function(*args, **(kwargs or {}))


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, modules in model.named_modules():
        if isinstance(modules, nn.ModuleList):
            for index, module in enumerate(modules):
                yield f"{path}.{index}", module


def streams_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The residual streams in what a decoder layer is given: its first floating tensor (rows, length, ..., width), and
    others of the same shape."""
    return _alike((*args[:1], kwargs.get("hidden_states"), *args[1:], *kwargs.values()))


def streams_of(output: Any) -> list[Tensor]:
    """The residual streams in what a decoder layer returns: a tensor, or the first of a tuple and others like it."""
    if isinstance(output, dict):
        output = tuple(output.values())
    items = output if isinstance(output, tuple | list) else (output,)
    return _alike(items) if items and _is_stream(items[0]) else []


def _alike(items: Sequence[Any]) -> list[Tensor]:
    streams = [item for item in items if _is_stream(item)]
    return list({id(item): item for item in streams if item.shape == streams[0].shape}.values())


def _is_stream(item: Any) -> bool:
    return isinstance(item, Tensor) and item.is_floating_point() and item.ndim >= 3


@contextmanager
def attached(handle: RemovableHandle) -> Iterator[None]:
    """A hook that lives as long as the block."""
    try:
        yield
    finally:
        handle.remove()
