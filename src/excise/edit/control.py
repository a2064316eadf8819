"""Controls: what must not remove a behavior, though it changes as much as the edit that does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from excise.edit.change import Change, LowRank, Projection
from excise.edit.edit import Edit, SiteEdit, SurveyLike, orthonormal, spanning
from excise.edit.writer import Writer


def random_control(edit: Edit, survey: SurveyLike, *, seed: int) -> Edit:
    """An edit of the same writers along one random direction of the residual stream: it must not remove anything.

    Projections keep their strengths. Low-rank changes keep their right factors, so that they fire when the edit fires,
    and the lengths of their left ones and the angles between them, so that a weight changes by as much: ‖ΔW‖ is the
    same. Where a writer is changed along several directions, as many random ones take their place. Masks have no
    direction: they are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    count = max((_rank(site) for site in edit.sites), default=0)
    drawn = [torch.randn(survey.hidden, generator=generator) for _ in range(count)]
    directions = [orthonormal(direction, hidden=survey.hidden) for direction in drawn]
    sites = []
    for site in edit.sites:
        if _rank(site):
            rows = _rows(survey, site.writer, directions[: _rank(site)], generator)
            sites.append(SiteEdit(site.writer, tuple(_turned(site.changes, rows))))
    return Edit(tuple(sites), survey.identity)


def _rank(site: SiteEdit) -> int:
    """How many directions it takes to turn the changes of a writer."""
    projected = sum(len(change.directions) for change in site.changes if isinstance(change, Projection))
    return max([projected, *(min(each.left.shape[-2:]) for each in site.changes if isinstance(each, LowRank))])


def _rows(
    survey: SurveyLike,
    writer: Writer,
    directions: Sequence[Float[Tensor, "1 hidden"]],
    generator: torch.Generator,
) -> Float[Tensor, "row width"]:
    """Orthonormal directions of what a writer writes, as many as are given, those of the first one first.

    Where too few of them can be told apart at the writer, others at random fill up.
    """
    rows = spanning(torch.cat([survey.at_writer(writer, direction) for direction in directions]))
    if len(rows) < len(directions):
        more = torch.randn(len(directions), rows.shape[-1], generator=generator)
        rows = spanning(torch.cat([rows, more]))
    return rows[: len(directions)]


def _turned(changes: Sequence[Change], rows: Float[Tensor, "row hidden"]) -> list[Change]:
    """The changes along `rows` in place of their own directions; those of all projections keep their angles."""
    projections = [change for change in changes if isinstance(change, Projection)]
    found: list[Change] = []
    if projections:
        turned = _along(torch.cat([change.directions for change in projections]).T, rows).T
        parts = turned.split([len(change.directions) for change in projections])
        found += [replace(change, directions=part) for change, part in zip(projections, parts, strict=True)]
    return found + [
        replace(change, left=_along(change.left, rows)) for change in changes if isinstance(change, LowRank)
    ]


def _along(
    columns: Float[Tensor, "*expert hidden rank"], rows: Float[Tensor, "row hidden"]
) -> Float[Tensor, "*expert hidden rank"]:
    """Columns Q R (Q orthonormal) with the first of `rows` in place of Q: lengths and angles stay."""
    triangle = torch.linalg.qr(columns.detach().cpu().double(), mode="r").R
    signs = triangle.diagonal(dim1=-2, dim2=-1).sgn()
    upright = triangle * torch.where(signs == 0, torch.ones_like(signs), signs)[..., None]
    found: Tensor = rows[: triangle.shape[-2]].double().T @ upright
    return found.float().contiguous()
