"""What the record of a run says about the chosen edit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from excise import record
from excise.edit import Edit, LowRank, Projection, SiteEdit, operators
from excise.model import EditableModel
from zoo.tiny import build


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return EditableModel(build("qwen3_moe", dtype=torch.bfloat16))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def edit(model: EditableModel) -> Edit:
    """One projection, one low-rank change, one of both, of a bank too."""
    attention = [writer for writer in model.survey.writers if writer.role == "attention"]
    bank = next(writer for writer in model.survey.writers if writer.expert_axis is not None)
    width = model.hf_model.get_parameter(attention[0].parameter).shape[1]
    projection = Projection(torch.linalg.qr(random(64, 2)).Q.T, 0.5)
    low_rank = LowRank(random(64, 3), random(3, width))
    sites = (
        SiteEdit(attention[0], (projection, Projection(torch.eye(64)[:1], 0.25, "column"))),
        SiteEdit(attention[1], (low_rank,)),
        SiteEdit(attention[2], (low_rank, projection)),
        SiteEdit(bank, (LowRank(random(4, 64, 1), random(4, 1, 24)),)),
    )
    return Edit(sites, model.identity)


def described(model: EditableModel, found: Edit, hf_model: nn.Module | None = None) -> list[dict[str, Any]]:
    sites: list[dict[str, Any]] = record.describe_edit(found, hf_model or model.hf_model)["sites"]
    return sites


def test_every_site_says_what_is_done(model: EditableModel) -> None:
    sites = described(model, edit(model))
    assert [(site["kind"], site["rank"], site["strength"]) for site in sites] == [
        ("projection", 3, 0.75),
        ("low-rank", 3, None),
        ("mixed", 5, 0.5),
        ("low-rank", 1, None),
    ]
    assert [(site["layer"], site["role"]) for site in sites[::3]] == [(0, "attention"), (0, "expert")]


def test_a_mask_has_a_size_and_no_rank(model: EditableModel) -> None:
    bank = next(writer for writer in model.survey.writers if writer.expert_axis is not None)
    (site,) = described(model, Edit.mask(model.survey, {bank.parameter: torch.zeros(4, 1)}))
    assert (site["kind"], site["rank"], site["strength"]) == ("mask", None, None)
    assert site["change"] == pytest.approx(1.0)


@pytest.mark.parametrize("limit", [1 << 24, 1000, 1])
def test_the_change_is_relative_to_the_weight(
    model: EditableModel, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_BLOCK", limit)
    asked = edit(model)
    for site, found in zip(asked.sites, described(model, asked), strict=True):
        weight = model.hf_model.get_parameter(site.writer.parameter).detach().float()
        delta = operators.delta(weight, site.changes, axis=site.writer.axis)
        assert found["change"] == pytest.approx(float(delta.norm() / weight.norm()), rel=1e-4)


@pytest.mark.parametrize(
    "stored", [torch.zeros(8, 2, dtype=torch.uint8), torch.zeros(64, 8, dtype=torch.float8_e4m3fn)]
)
def test_a_packed_weight_has_no_size(model: EditableModel, stored: torch.Tensor) -> None:
    site = edit(model).sites[1]
    found = record.describe_site(site, stored)
    assert found["change"] is None
    assert (found["kind"], found["rank"]) == ("low-rank", 3)


def test_nor_has_one_that_is_offloaded_or_gone_or_zero(model: EditableModel) -> None:
    asked = edit(model)
    site = asked.sites[1]
    weight = model.hf_model.get_parameter(site.writer.parameter)
    assert record.describe_site(site, torch.empty_like(weight, device="meta"))["change"] is None
    assert record.describe_site(site, torch.zeros_like(weight))["change"] is None
    gone = replace(site, writer=replace(site.writer, parameter="gone"))
    assert described(model, replace(asked, sites=(gone,)))[0]["change"] is None


def test_norm_modes(model: EditableModel) -> None:
    asked = edit(model)
    assert record.describe_edit(asked, model.hf_model)["norm"] == "column/none"
    assert record.describe_edit(replace(asked, sites=asked.sites[1:2]), model.hf_model)["norm"] == ""
