"""Strengths of unit edits by quadratic programs: how much each writer should do, from slopes and curvatures alone.

At strengths α, the change d that does most for its damage (`excise.search.sensitivity`):

    d = argmin κ (s·d + ½dᵀHd) + g·d + ½dᵀGd + ρΣ(α + d)    with |d| ≤ reach, 0 ≤ α + d ≤ most

s, H slope and curvature of the damage, g, G of the behavior, κ the weight of preserving, ρ a price that makes strengths
vanish where they serve little. Each program is convex and solved exactly; both losses are then measured where it leads,
a step that made things worse is taken back and the reach halved. The whole path from thorough to light is what it gives
for growing κ, each beginning where the last one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import lsq_linear
from torch import Tensor

from excise.search.sensitivity import Sensitivity

REACH, LARGEST = 0.5, 2.0
PRICE = 1e-3
"""Nats that a unit of strength must save at least, relative to the weight of preserving."""

ROUNDS = 3
_SMALL = 0.01
_DAMPING = 1e-5


@dataclass(frozen=True)
class Allocation:
    """Strengths at one weight of preserving, and the losses there (on the fit split)."""

    preserve: float
    strengths: Float[Tensor, " unit"]
    damage: float
    behavior: float


def step(
    found: Sensitivity,
    strengths: Float[Tensor, " unit"],
    *,
    preserve: float,
    price: float = 0.0,
    reach: float = REACH,
    largest: float = LARGEST,
) -> Float[Tensor, " unit"]:
    """The strengths that the quadratic program leads to: its exact optimum (bounded least squares, active sets)."""
    curvature = (preserve * found.damage_curvature + found.behavior_curvature).double()
    curvature.diagonal().add_(_DAMPING * float(curvature.trace()) / len(strengths) + 1e-12)
    slope = (preserve * found.damage_slope + found.behavior_slope).double() + price
    factor = torch.linalg.cholesky(curvature)
    goal = -torch.linalg.solve_triangular(factor, slope[:, None], upper=False)[:, 0]
    now = strengths.double()
    least, most = (-now).clamp(min=-reach), (largest - now).clamp(max=reach)
    fixed = 1e-9 * torch.ones_like(now)  # bounds must not meet
    solved = lsq_linear(
        factor.T.numpy(), goal.numpy(), ((least - fixed).numpy(), (most + fixed).numpy()), method="bvls"
    )
    there: Tensor = (now + torch.from_numpy(np.asarray(solved.x))).clamp(0.0, largest)
    return there.float()


def path(
    measure: Callable[[Float[Tensor, " unit"]], Sensitivity],
    start: Float[Tensor, " unit"],
    preserves: Sequence[float],
    *,
    price: float = PRICE,
    rounds: int = ROUNDS,
    progress: Callable[[int, int, str], None] | None = None,
) -> Iterator[Allocation]:
    """The allocation for each weight of preserving, each from where the one before ended.

    measure  what small changes do at some strengths; called at most `rounds` times per weight, and once before
    """
    now, found = start, measure(start)
    for number, preserve in enumerate(preserves):
        reach = REACH
        for done in range(rounds):
            if progress is not None:
                progress(number * rounds + done, len(preserves) * rounds, "rounds")
            there = step(found, now, preserve=preserve, price=price * preserve, reach=reach)
            if float((there - now).abs().max()) < _SMALL:
                break
            after = measure(there)
            if _total(after, there, preserve, price) < _total(found, now, preserve, price):
                now, found = there, after
            else:
                reach /= 2
        yield Allocation(preserve, now, found.damage, found.behavior)


def _total(found: Sensitivity, strengths: Float[Tensor, " unit"], preserve: float, price: float) -> float:
    return preserve * (found.damage + price * float(strengths.sum())) + found.behavior
