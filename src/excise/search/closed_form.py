"""The target-conditional edit in closed form: one ridge solve per writer, nothing searched.

Of all changes y' = y − r (a·x) of a writer y = Wx, the one that takes the write along r from target tokens down to
what it is on baseline tokens, and stays silent on those:

    a = argmin E_b[(a·x)²] + ρ‖a‖² + β E_t[(a·x − (r·Wx − m))²]
      = (C + ρI + βM)⁻¹ β (M w − m k̄),    w = Wᵀr

Glossary: C, M second moments of x over baseline and over key tokens, k̄ the mean key, m the mean of r·Wx over baseline
key tokens, β how much the target counts, ρ ridge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from excise.activations.port_statistics import PortStatistics
from excise.activations.second_moments import Ridge, SecondMoment
from excise.edit import DirectionsLike, orthonormal, spanning
from excise.model import EditableModel
from excise.model.ports import Port
from excise.model.weights import compute_device
from excise.search.factors import Factor, Factors

RIDGE = 1e-2


def conditional(
    statistics: PortStatistics, ridge: Ridge, read: Float[Tensor, "rank width"], *, weight: float
) -> Float[Tensor, "rank width"]:
    """The right factor a for each direction, from w = Wᵀr (`read`); `weight` is β."""
    exact = read.detach().cpu().float()
    usual = exact @ statistics.baseline_mean
    goal = times(statistics.keys, exact) - usual[:, None] * statistics.key_mean
    return ridge.solve(statistics.keys, weight, weight * goal)


def times(moment: SecondMoment, vectors: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    """The second moment applied to vectors."""
    if moment.matrix is not None:
        return vectors @ moment.matrix
    assert moment.sketch is not None
    return (vectors @ moment.sketch.T) @ moment.sketch


Right = Callable[[Port, PortStatistics, Ridge, Tensor], Tensor]
"""The right factors of a port, one per direction (the rows of the last argument), as functions of what it reads."""


def port_factors(
    model: EditableModel,
    ports: Sequence[Port],
    statistics: Mapping[str, PortStatistics],
    directions: DirectionsLike,
    right: Right,
    *,
    ridges: dict[str, Ridge] | None = None,
) -> Factors:
    """A factor at every port: each layer's directions, with the right factors that `right` says.

    Ports without statistics are projected at strength 1.

    ridges  kept between calls: what is factored once serves every direction and weight
    """
    kept = {} if ridges is None else ridges
    found = []
    for port in ports:
        name = port.writer.parameter
        basis = orthonormal(directions.at_layer(port.writer.layer), hidden=model.hidden)
        rows = spanning(model.survey.at_writer(port.writer, basis))
        if not len(rows):
            continue
        device = compute_device(model.hf_model.get_submodule(port.module))
        known = statistics.get(name)
        if port.reads == "projection" or known is None:
            strength = torch.ones(len(rows), 1, device=device)
            found.append(Factor(replace(port, reads="projection"), rows.to(device), strength, None, 1.0))
            continue
        ridge = kept.setdefault(name, Ridge(known.baseline, ridge=RIDGE))
        whitened = ridge.whitened(right(port, known, ridge, rows))
        scale = float(whitened.norm(dim=-1).mean())
        found.append(Factor(port, rows.to(device), whitened.to(device), ridge, scale))
    return Factors(model, found)
