"""The gains of norms, read by asking the norms themselves: what a survey without weights lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.model.findings import GainStep, Path


def with_gains(
    paths: Mapping[str, tuple[Path, ...]], model: nn.Module, *, hidden: int
) -> dict[str, tuple[Path, ...]] | None:
    """The paths with the gains that `model` has; None where one of them is not the gain of a plain norm or scale."""
    known: dict[GainStep, GainStep] = {}
    for step in dict.fromkeys(step for ways in paths.values() for path in ways for step in path):
        values = None if step.parameter is None else gain_of(model, step.parameter, hidden)
        if step.parameter is not None and values is None:
            return None
        known[step] = replace(step, values=values)
    return {name: tuple(tuple(known[step] for step in path) for path in ways) for name, ways in paths.items()}


@torch.no_grad()
def gain_of(model: nn.Module, parameter: str, hidden: int) -> Float[Tensor, " hidden"] | None:
    """What the module that owns `parameter` multiplies each component by, up to a common factor; fp32 on the CPU.

    The module is given a vector whose mean is zero, so that it does not matter whether it takes the mean out. None for
    a module that is no norm and no scale: one with modules of its own, or that answers in another shape.
    """
    owner = model.get_submodule(parameter.rpartition(".")[0])
    if next(owner.children(), None) is not None or any(value.ndim != 1 for value in owner.parameters()):
        return None
    device = model.get_parameter(parameter).device
    device = torch.device("cpu") if device.type == "meta" else device  # offloaded: it is brought where the input is
    vector = torch.tensor([1.0, -1.0], device=device).repeat((hidden + 1) // 2)[:hidden]
    if hidden % 2:
        vector[-3:] = torch.tensor([1.0, 1.0, -2.0], device=device)
    try:
        up, down, doubled = (owner(factor * vector[None, None]) for factor in (1.0, -1.0, 2.0))
    except (TypeError, RuntimeError, ValueError, IndexError):
        return None  # it takes something else than one tensor
    if not isinstance(up, Tensor) or up.shape != (1, 1, hidden) or not bool(torch.isfinite(up).all()):
        return None
    odd = (up.float() - down.float())[0, 0] / 2
    grown = (doubled.float() - down.float())[0, 0] - odd  # as large for a norm, twice as large for a scale
    same = [torch.allclose(grown, factor * odd, rtol=1e-2, atol=1e-3 * float(odd.abs().max())) for factor in (1.0, 2.0)]
    return (odd / vector).cpu() if any(same) else None
