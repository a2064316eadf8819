"""The random control writes as strongly as the edit, and elsewhere."""

import torch

from excise.edit import Edit, LowRank, Projection, SiteEdit
from excise.model import EditableModel
from excise.stages import random_control
from zoo.tiny import build


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_projections_keep_their_strengths_and_low_rank_changes_their_sizes() -> None:
    survey = EditableModel(build("llama")).survey
    first, second = [writer for writer in survey.writers if writer.role == "mlp"][:2]
    low_rank = LowRank(random(64, 2, seed=0), random(2, 96, seed=1))
    projection = Projection(torch.eye(64)[:1], 0.7, "column")
    edit = Edit((SiteEdit(first, (low_rank,)), SiteEdit(second, (projection,))), survey.identity)
    control = random_control(edit, survey, seed=3)
    assert {site.writer for site in control.sites} == {first, second}
    found, kept = control.site(first.parameter), control.site(second.parameter)
    assert found is not None
    assert kept is not None
    (other,), (projected,) = found.changes, kept.changes
    assert isinstance(other, LowRank)
    assert isinstance(projected, Projection)
    torch.testing.assert_close(other.left.norm(dim=0), low_rank.left.norm(dim=0))
    assert torch.equal(other.right, low_rank.right)
    assert abs(float(torch.cosine_similarity(other.left[:, 0], low_rank.left[:, 0], dim=0))) < 0.5
    assert (projected.strength, projected.norm) == (0.7, "column")
    again = random_control(edit, survey, seed=3).site(first.parameter)
    assert again is not None
    assert torch.equal(vars(again.changes[0])["left"], other.left)
