"""Controls: what must not remove a behavior, though it changes as much as the edit that does."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from excise.edit.change import LowRank, Norm, Projection
from excise.edit.edit import Edit, SiteEdit, SurveyLike, spanning
from excise.edit.writer import Writer


def random_control(edit: Edit, survey: SurveyLike, *, seed: int) -> Edit:
    """An edit of the same writers along one random direction of the residual stream: it must not remove anything.

    Projections keep their strengths. Low-rank changes keep their right factors, so that they fire when the edit fires,
    and the lengths of their left ones and the angles between them, so that a weight changes by as much: ‖ΔW‖ is the
    same. Of a higher rank, a change needs more random directions than the one.
    """
    generator = torch.Generator().manual_seed(seed)
    ranks = [_rank(change) for site in edit.sites for change in site.changes if isinstance(change, LowRank)]
    directions = [torch.randn(survey.hidden, generator=generator) for _ in range(max(ranks, default=1))]
    control = _projections(edit, survey, directions[0])
    turned = []
    for site in edit.sites:
        low_rank = [change for change in site.changes if isinstance(change, LowRank)]
        if low_rank:
            rows = _rows(survey, site.writer, directions, generator)
            turned.append(SiteEdit(site.writer, tuple(_turned(change, rows) for change in low_rank)))
    return control + Edit(tuple(turned), survey.identity) if turned else control


def _projections(edit: Edit, survey: SurveyLike, direction: Float[Tensor, " hidden"]) -> Edit:
    """The strongest projection of each writer, along `direction`."""
    strengths: dict[str, float] = {}
    norms: set[Norm] = set()
    for site in edit.sites:
        found = [change for change in site.changes if isinstance(change, Projection)]
        if found:
            strengths[site.writer.parameter] = max((change.strength for change in found), key=abs)
            norms.update(change.norm for change in found)
    norm: Norm = norms.pop() if len(norms) == 1 else "none"
    return Edit.project(survey, direction, strength=strengths, norm=norm, embedding=True)


def _rows(
    survey: SurveyLike, writer: Writer, directions: list[Tensor], generator: torch.Generator
) -> Float[Tensor, "row width"]:
    """Orthonormal directions of what a writer writes, those of the first of `directions` first.

    As many as there are directions: what too few of them can be told apart at the writer is filled up at random.
    """
    asked = torch.cat([survey.at_writer(writer, direction[None]) for direction in directions])
    rows = spanning(asked)
    if len(rows) < len(directions):
        more = torch.randn(len(directions), asked.shape[-1], generator=generator)
        rows = spanning(torch.cat([rows, more]))
    return rows[: len(directions)]


def _rank(change: LowRank) -> int:
    return min(change.left.shape[-2:])


def _turned(change: LowRank, rows: Float[Tensor, "row hidden"]) -> LowRank:
    """The change with its left factor Q R (Q with orthonormal columns) turned into the space of `rows`."""
    triangle = torch.linalg.qr(change.left.detach().cpu().double(), mode="r").R
    left = rows[: triangle.shape[-2]].double().T @ triangle
    return LowRank(left.float(), change.right)
