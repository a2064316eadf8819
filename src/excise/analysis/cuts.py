"""Cutting a decoder layer at its writes, so that nothing but their direct path to the stream can be differentiated.

Every writer's output is replaced by a leaf of the same value, and nothing is differentiated through a module that owns
a matrix: what later sublayers, gates and routers make of an earlier write is not counted to it. The gradient of what
comes behind the layer is then that of the direct path alone: additions, gates, routing weights, residual multipliers,
gains. All of that is linear in the write but the scale of a norm behind it, which is held fixed, as is usual where a
model's output is attributed to its parts (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").

Glossary: u what a norm is given, g its gain, s its scale (1/rms, one number per token).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.edit import EMBEDDING_LAYER, Writer
from excise.model import Survey
from excise.model.findings import GainStep
from excise.model.trace import attached

_FITS = 0.02  # how far a norm in bf16 may be from s · (g ⊙ u), relative


@dataclass(frozen=True)
class Call:
    """One call of a writer's module: what it was given, and the leaf that stands for its output."""

    writer: Writer
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    leaf: Tensor


@dataclass
class Cuts:
    """What was cut since somebody last looked.

    calls    of writers, in order
    unfixed  parameters of gains that do not act as the survey says: their own derivative is used
    """

    calls: list[Call] = field(default_factory=list)
    unfixed: set[str] = field(default_factory=set)


@contextmanager
def cut(model: nn.Module, survey: Survey) -> Iterator[Cuts]:
    """While the block runs, writers in layers are cut off, and no parameter needs gradients; then all is as before.

    Values stay what they are: only gradients differ.
    """
    cuts = Cuts()
    with ExitStack() as stack:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                stack.callback(parameter.requires_grad_, True)
        for module in _products(model, survey):
            stack.enter_context(attached(module.register_forward_pre_hook(_without_graph, with_kwargs=True)))
        for writer in survey.writers:
            if writer.module is not None and writer.layer != EMBEDDING_LAYER:
                module = model.get_submodule(writer.module)
                hook = _leaf_hook(writer, cuts)
                stack.enter_context(attached(module.register_forward_hook(hook, with_kwargs=True)))
        for step in gains_of(survey).values():
            assert step.parameter is not None
            owner = step.parameter.rpartition(".")[0]
            if not any(f"{layer}.".startswith(f"{owner}.") for layer in survey.layer_names):
                module = model.get_submodule(owner)
                others = [
                    other.detach()
                    for name, other in module.named_parameters(recurse=False)
                    if f"{owner}.{name}" != step.parameter and other.ndim == 1
                ]
                stack.enter_context(attached(module.register_forward_hook(_fixed_scale_hook(step, others, cuts))))
        yield cuts


def loose(value: Any) -> Any:
    """A tensor without its graph; anything else as it is."""
    return value.detach() if isinstance(value, Tensor) else value


def gains_of(survey: Survey) -> dict[str, GainStep]:
    """The gains that a write passes on its way to the stream, by the name of their parameter."""
    steps = (step for paths in survey.paths.values() for path in paths for step in path)
    return {step.parameter: step for step in steps if step.parameter is not None and step.values is not None}


def _products(model: nn.Module, survey: Survey) -> Iterator[nn.Module]:
    """The modules that multiply by a matrix of their own and do not lie on the path of a write or of the stream."""
    steps = (step for paths in survey.paths.values() for path in paths for step in path)
    passed = {step.parameter.rpartition(".")[0] for step in steps if step.parameter is not None}
    writers = {writer.module or writer.parameter.rpartition(".")[0]: writer.module for writer in survey.writers}
    for name, module in model.named_modules():
        around = any(f"{layer}.".startswith(f"{name}." if name else "") for layer in survey.layer_names)
        carries = name in passed or any(
            (other == name and hooked is None) or other.startswith(f"{name}.") for other, hooked in writers.items()
        )
        if not around and not carries and any(value.ndim >= 2 for value in module.parameters(recurse=False)):
            yield module


def _without_graph(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(loose(value) for value in args), {name: loose(value) for name, value in kwargs.items()}


def _leaf_hook(writer: Writer, cuts: Cuts) -> Callable[..., Tensor]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        cuts.calls.append(Call(writer, args, kwargs, leaf))
        return leaf.clone()  # the model may add to it in place

    return hook


def _fixed_scale_hook(step: GainStep, others: list[Tensor], cuts: Cuts) -> Callable[..., Tensor | None]:
    """Give a norm's output the gradient of s · (g ⊙ u) with s fixed, where that is what it is."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        given = args[0] if args else None
        if not (isinstance(given, Tensor) and isinstance(output, Tensor) and given.shape == output.shape):
            cuts.unfixed.add(step.parameter or "")
            return None
        if not given.requires_grad:
            return None
        linear = _with_fixed_scale(given, output.detach(), step, others)
        if linear is None:
            cuts.unfixed.add(step.parameter or "")
            return None
        return output.detach() + (linear - linear.detach()).to(output.dtype)

    return hook


def _with_fixed_scale(
    given: Float[Tensor, "... hidden"], output: Float[Tensor, "... hidden"], step: GainStep, others: list[Tensor]
) -> Float[Tensor, "... hidden"] | None:
    """s · (g ⊙ u) in fp32, s measured for every token; None where the output is something else."""
    if step.values is None or step.values.shape[-1] != given.shape[-1]:
        return None
    exact = given.float()
    centred = exact - exact.mean(dim=-1, keepdim=True) if step.centred else exact
    gained = centred * step.values.to(given.device)
    wanted = output.float() - sum(other.float().to(given.device) for other in others)
    shape = gained.detach()
    scale = (wanted * shape).sum(-1, keepdim=True) / shape.square().sum(-1, keepdim=True).clamp_min(1e-30)
    linear = gained * scale
    off = torch.linalg.vector_norm(linear.detach() - wanted) > _FITS * torch.linalg.vector_norm(wanted)
    return None if bool(off) else linear
