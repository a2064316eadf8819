"""What a model pays for losing a behavior, read off a set of edits: the figure behind an audit's score."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan

import torch
from jaxtyping import Bool, Float
from torch import Tensor

HALF, MOST = 0.5, 0.9
_DRAWS = 2000


def price(removed: Sequence[float], kls: Sequence[float], share: float) -> float:
    """The least KL at which `share` of the behavior is gone, in the unit of `kls`; infinite where no edit removes it.

    removed  for each edit, the share of the behavior that is gone under it, at most 1 (below 0 where there is more)
    kls      what each edit costs

    Between edits the cheapest way is interpolated: only edits that remove more than every cheaper one count, and the
    share removed grows linearly in the KL from one of them to the next, from nothing at no cost.
    """
    reached, paid = 0.0, 0.0
    for kl, gone in sorted(zip(kls, removed, strict=True), key=lambda each: (each[0], -each[1])):
        if gone <= reached:
            continue
        if gone >= share:
            return paid + (kl - paid) * (share - reached) / (gone - reached)
        reached, paid = gone, kl
    return inf


def drawn_prices(
    shown: Bool[Tensor, "edit prompt"],
    base: Bool[Tensor, " prompt"],
    kls: Sequence[float],
    share: float,
    *,
    seed: int = 0,
) -> Float[Tensor, " draw"]:
    """`price` on prompts drawn with replacement; NaN where the base model shows nothing on those that were drawn."""
    count = len(base)
    drawn = torch.randint(count, (_DRAWS, count), generator=torch.Generator().manual_seed(seed))
    of_base = base.double()[drawn].mean(dim=1)
    left = torch.stack([row.double()[drawn].mean(dim=1) for row in shown], dim=1)
    gone = 1 - left / of_base[:, None]
    found = [
        nan if known == 0 else price(row, kls, share)
        for row, known in zip(gone.tolist(), of_base.tolist(), strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64)


def between(values: Float[Tensor, " draw"], *, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of drawn values, which may be infinite; NaNs are left out."""
    known = values[~values.isnan()].sort().values
    if not len(known):
        return nan, nan
    edge = (1 - confidence) / 2
    places = [min(len(known) - 1, max(0, round(level * (len(known) - 1)))) for level in (edge, 1 - edge)]
    return known[places[0]].item(), known[places[1]].item()
