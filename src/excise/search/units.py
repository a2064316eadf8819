"""Unit edits: what one writer may do about one direction, as factors that strengths and a polish then work on.

    projection   y' = y − r (r·y): all of the write along r
    oblique      y' = y − r (s·y), s = S⁻¹r/(rᵀS⁻¹r), S = E_b[yyᵀ]: takes a write r away just so, and moves what the
                 writer writes on baseline tokens least (LEACE, Belrose et al. 2023, at each writer)
    conditional  y' = y − r (a·x): on target tokens alone (`closed_form`)

and of any of them, with `fisher_weighted`, the left factor that the model's output notices least: r is replaced by
G⁻¹r/(rᵀG⁻¹r), G = E_b[ggᵀ] with g the gradient of the log-probability of a token drawn from the model, at what the
writer writes. As much is taken away along r; ½tr(GΔCΔᵀ) ≈ KL is least (Kronecker-factored, Martens and Grosse 2015).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.activations.port_statistics import PortStatistics
from excise.activations.second_moments import Ridge, SecondMoment, SecondMomentAccumulator, root_of
from excise.edit import DirectionsLike
from excise.model import EditableModel
from excise.model.ports import Port, read_directions
from excise.model.trace import attached
from excise.model.weights import compute_device, compute_dtype
from excise.search.closed_form import RIDGE, conditional, port_factors
from excise.search.factors import Factor, Factors
from excise.search.gradients import frozen
from excise.search.sensitivity import Watched, damage_and_scores, groups

Kind = Literal["projection", "oblique", "conditional"]
FISHER_RIDGE = 0.1
"""Of the damping of G, in units of its mean eigenvalue: it is estimated from few tokens."""


def unit_factors(
    model: EditableModel,
    ports: Sequence[Port],
    statistics: Mapping[str, PortStatistics],
    directions: DirectionsLike,
    *,
    kind: Kind,
    weight: float = 1.0,
    ridges: dict[str, Ridge] | None = None,
) -> Factors:
    """The unit edits of a kind at every port, for each layer's directions; each row of a factor is one unit.

    weight  β of the conditional ones
    ridges  kept between calls

    Ports without statistics are projected, whatever the kind.
    """

    def right(port: Port, known: PortStatistics, ridge: Ridge, rows: Tensor) -> Tensor:
        if kind == "conditional":
            return conditional(known, ridge, read_directions(model.hf_model, port, rows), weight=weight)
        if kind == "oblique":
            rows = oblique(written(model.hf_model, port, known.baseline), rows)
        return read_directions(model.hf_model, port, rows).cpu()

    return port_factors(model, ports, statistics, directions, right, ridges=ridges)


def oblique(moment: SecondMoment, directions: Float[Tensor, "row hidden"]) -> Float[Tensor, "row hidden"]:
    """S⁻¹r/(rᵀS⁻¹r) for each direction r, with the moment S shrunk."""
    exact = directions.detach().cpu().float()
    solved = Ridge(moment, ridge=RIDGE).solve(moment, 0.0, exact)
    return solved / (solved * exact).sum(dim=-1, keepdim=True)


def written(model: nn.Module, port: Port, read: SecondMoment) -> SecondMoment:
    """The second moment of what a port writes, from that of what it reads: W C Wᵀ."""
    if port.reads != "input":
        return read
    half = writes_of(model, port, root_of(read))
    matrix = half @ half.T
    return SecondMoment(read.count, float(matrix.trace()), matrix, None, read.error)


def writes_of(model: nn.Module, port: Port, inputs: Float[Tensor, "row width"]) -> Float[Tensor, "hidden row"]:
    """W applied to inputs, as columns, in fp32 on the CPU: by the module itself, whatever its weight is packed in."""
    module = model.get_submodule(port.module)
    with torch.no_grad():
        given = inputs.to(device=compute_device(module), dtype=compute_dtype(model, module))
        none: Tensor = module(torch.zeros_like(given[:1]))
        output: Tensor = module(given)
    return (output.float() - none.float()).cpu().T


def output_fisher(watched: Watched, *, samples: int = 1) -> dict[str, SecondMoment]:
    """G at what each port writes, on baseline rows of the fit split, with no edit live; by the writer's parameter.

    Every token of a row counts once for each sample; the edited model's damage (`sensitivity`) is what g is of.
    """
    gathered: dict[str, SecondMomentAccumulator] = {}
    model = watched.model.hf_model
    generator = torch.Generator().manual_seed(watched.seed)
    none = torch.zeros(watched.factors.units, requires_grad=True)
    with frozen(model):
        for group in groups(watched, [watched.lessons.baseline[index] for index in watched.baseline]):
            with ExitStack() as hooks:
                hooks.enter_context(watched.factors.live(none))  # what it adds, nothing, is what gradients come back to
                for factor in watched.factors.factors:
                    module = model.get_submodule(factor.port.module)
                    hooks.enter_context(attached(module.register_forward_hook(_catching(gathered, factor))))
                _, scores = damage_and_scores(watched, group, samples, generator)
            for number, score in enumerate(scores):
                torch.autograd.grad(score.sum(), none, retain_graph=number < len(scores) - 1)
    return {name: accumulator.result() for name, accumulator in gathered.items()}


def _catching(gathered: dict[str, SecondMomentAccumulator], factor: Factor) -> Any:
    """A forward hook that adds the gradients at what the module writes; those of padding are zero, and left out."""
    name, width = factor.port.writer.parameter, factor.left.shape[-1]

    def caught(gradient: Tensor) -> None:
        flat = gradient.detach().reshape(-1, gradient.shape[-1])
        accumulator = gathered.setdefault(name, SecondMomentAccumulator(width))
        accumulator.update(flat[flat.abs().amax(dim=-1) > 0])

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(caught)

    return hook


def fisher_weighted(factors: Factors, fishers: Mapping[str, SecondMoment], *, ridge: float = FISHER_RIDGE) -> Factors:
    """The same unit edits along G⁻¹r instead of r; ports without a G, and projections, stay as they are."""
    found = []
    for factor in factors.factors:
        known = fishers.get(factor.port.writer.parameter)
        if known is None or factor.ridge is None:
            found.append(factor)
            continue
        left = torch.nn.functional.normalize(factor.left.detach().cpu().float(), dim=-1)
        solved = Ridge(known, ridge=ridge).solve(known, 0.0, left)
        solved = solved / (solved * left).sum(dim=-1, keepdim=True)
        lengths = solved.norm(dim=-1, keepdim=True).to(factor.right.device)
        right = factor.right.detach() * lengths
        found.append(
            replace(factor, left=solved.to(factor.left.device), right=right, scale=float(right.norm(dim=-1).mean()))
        )
    return Factors(factors.model, found)
