"""The target-conditional edit in closed form: one ridge solve per writer, nothing searched.

Of all changes y' = y − r (a·x) of a writer y = Wx, the one that takes the write along r from target tokens down to
what it is on baseline tokens, and stays silent on those:

    a = argmin E_b[(a·x)²] + ρ‖a‖² + β E_t[(a·x − (r·Wx − m))²]
      = (C + ρI + βM)⁻¹ β (M w − m k̄),    w = Wᵀr

Glossary: C, M second moments of x over baseline and over key tokens, k̄ the mean key, m the mean of r·Wx over baseline
key tokens, β how much the target counts, ρ ridge.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from excise.activations.port_statistics import PortStatistics
from excise.activations.second_moments import Ridge, SecondMoment

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
