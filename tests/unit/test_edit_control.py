"""The random control changes as much as the edit, at the same tokens, and along another direction."""

from __future__ import annotations

import pytest
import torch

from excise.edit import Edit, LowRank, Projection, SiteEdit, Writer, operators, random_control, spanning
from excise.model import EditableModel
from zoo.tiny import build

PLAIN, POST_NORM, BANK = "llama", "gemma2", "qwen3_moe"


@pytest.fixture(scope="module", params=[PLAIN, POST_NORM, BANK])
def model(request: pytest.FixtureRequest) -> EditableModel:
    return EditableModel(build(request.param))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def writers(model: EditableModel) -> list[Writer]:
    return [writer for writer in model.survey.writers if writer.role != "embedding"]


def low_rank(model: EditableModel, writer: Writer, *, rank: int) -> LowRank:
    """A change whose left factors are neither orthogonal nor of one length."""
    shape = list(model.hf_model.get_parameter(writer.parameter).shape)
    hidden, seed = shape.pop(writer.axis), 10 + writer.layer
    left = random(hidden, rank, seed=seed) * torch.arange(1.0, rank + 1)
    left = left + left[:, :1]
    return LowRank(left, random(*shape[:-1], rank, shape[-1], seed=seed + 100))


def edit(model: EditableModel, *, rank: int) -> Edit:
    sites = (SiteEdit(writer, (low_rank(model, writer, rank=rank),)) for writer in writers(model))
    return Edit(tuple(sites), model.identity)


def deltas(model: EditableModel, found: Edit) -> dict[str, torch.Tensor]:
    return {
        site.writer.parameter: operators.delta(
            model.hf_model.get_parameter(site.writer.parameter).detach(), site.changes, axis=site.writer.axis
        )
        for site in found.sites
    }


@pytest.mark.parametrize("rank", [1, 3])
def test_every_weight_changes_by_as_much(model: EditableModel, rank: int) -> None:
    asked = edit(model, rank=rank)
    wanted, found = deltas(model, asked), deltas(model, random_control(asked, model.survey, seed=0))
    assert list(found) == list(wanted)
    for name, change in wanted.items():
        assert float(change.norm()) > 0
        torch.testing.assert_close(found[name].norm(), change.norm(), rtol=1e-5, atol=0)
        axes = found[name].flatten(), change.flatten()
        assert abs(float(torch.cosine_similarity(*axes, dim=0))) < 0.6


@pytest.mark.parametrize("rank", [1, 3])
def test_it_fires_when_the_edit_fires(model: EditableModel, rank: int) -> None:
    asked = edit(model, rank=rank)
    for site, other in zip(asked.sites, random_control(asked, model.survey, seed=0).sites, strict=True):
        (wanted,), (found,) = site.changes, other.changes
        assert isinstance(wanted, LowRank)
        assert isinstance(found, LowRank)
        assert torch.equal(found.right, wanted.right)
        torch.testing.assert_close(found.left.norm(dim=-2), wanted.left.norm(dim=-2))


def test_it_writes_along_one_direction_of_the_stream(model: EditableModel) -> None:
    """At a writer behind a gained norm, along what the write loses that direction by."""
    control = random_control(edit(model, rank=1), model.survey, seed=5)
    direction = random(64, seed=5)[None]
    for site in control.sites:
        (change,) = site.changes
        assert isinstance(change, LowRank)
        (row,) = spanning(model.survey.at_writer(site.writer, direction))
        along = row @ change.left
        torch.testing.assert_close(along.abs(), change.left.norm(dim=-2), rtol=1e-5, atol=1e-6)


def test_the_seed_decides(model: EditableModel) -> None:
    asked = edit(model, rank=2)
    first, again, other = (deltas(model, random_control(asked, model.survey, seed=seed)) for seed in (1, 1, 2))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.allclose(first[name], other[name])


@pytest.mark.parametrize("norm", ["none", "column"])
def test_projections_keep_their_strengths(model: EditableModel, norm: str) -> None:
    strengths = {writer.parameter: 0.5 + 0.1 * max(writer.layer, 0) for writer in model.survey.writers}
    asked = Edit.project(model.survey, random(64), strengths, norm, embedding=True)  # type: ignore[arg-type]
    control = random_control(asked, model.survey, seed=5)
    direct = Edit.project(model.survey, random(64, seed=5), strengths, norm, embedding=True)  # type: ignore[arg-type]
    assert [site.writer for site in control.sites] == [site.writer for site in asked.sites]
    for site, wanted in zip(control.sites, direct.sites, strict=True):
        (change,), (expected,) = site.changes, wanted.changes
        assert isinstance(change, Projection)
        assert isinstance(expected, Projection)
        assert (change.strength, change.norm) == (expected.strength, expected.norm)
        torch.testing.assert_close(change.directions, expected.directions)


def test_projections_of_one_writer_keep_their_angles(model: EditableModel) -> None:
    writer = writers(model)[0]
    rows = spanning(random(4, 64))
    near = spanning(rows[:1] + 0.3 * rows[1:2])
    asked = (Projection(rows[:1], 0.5), Projection(near, 0.4), Projection(rows[1:3], -0.2, "column"))
    control = random_control(Edit((SiteEdit(writer, asked),), model.identity), model.survey, seed=7)
    found = [change for change in control.sites[0].changes if isinstance(change, Projection)]
    assert [(change.strength, change.norm) for change in found] == [(each.strength, each.norm) for each in asked]
    wanted, turned = (torch.cat([each.directions for each in changes]) for changes in (asked, found))
    torch.testing.assert_close(turned @ turned.T, wanted @ wanted.T, atol=1e-6, rtol=0)
    assert (turned @ wanted.T).abs().max() < 0.6


def test_edits_of_both_kinds(model: EditableModel) -> None:
    first, second, third = writers(model)[:3]
    projection = Projection(torch.eye(64)[:1], 0.7, "column")
    asked = Edit(
        (
            SiteEdit(first, (low_rank(model, first, rank=1),)),
            SiteEdit(second, (projection,)),
            SiteEdit(third, (low_rank(model, third, rank=2), projection)),
        ),
        model.identity,
    )
    control = random_control(asked, model.survey, seed=0)
    kinds = {site.writer: {type(change) for change in site.changes} for site in control.sites}
    assert kinds == {first: {LowRank}, second: {Projection}, third: {LowRank, Projection}}
    changes = [change for site in control.sites for change in site.changes]
    strengths = [(change.strength, change.norm) for change in changes if isinstance(change, Projection)]
    assert strengths == [(0.7, "column")] * 2


def test_masks_have_no_control() -> None:
    tiny = EditableModel(build(PLAIN))
    writer = writers(tiny)[0]
    width = tiny.hf_model.get_parameter(writer.parameter).shape[1 - writer.axis]
    masked = Edit.mask(tiny.survey, {writer.parameter: torch.zeros(width)})
    assert random_control(masked, tiny.survey, seed=0).sites == ()


def test_an_edit_that_changes_nothing_has_such_a_control(model: EditableModel) -> None:
    assert random_control(Edit.empty(model.survey), model.survey, seed=0).sites == ()


def test_a_writer_whose_write_vanishes_still_gets_its_size() -> None:
    tiny = EditableModel(build(POST_NORM))
    writer = next(writer for writer in writers(tiny) if writer.gain is not None)
    tiny.hf_model.get_parameter(writer.gain or "").data.fill_(-1.0)  # Gemma's gains are 1 + w
    tiny = EditableModel(tiny.hf_model)
    assert not len(spanning(tiny.survey.at_writer(writer, random(1, 64))))
    asked = Edit((SiteEdit(writer, (low_rank(tiny, writer, rank=2),)),), tiny.identity)
    found = deltas(tiny, random_control(asked, tiny.survey, seed=0))
    torch.testing.assert_close(found[writer.parameter].norm(), deltas(tiny, asked)[writer.parameter].norm())
