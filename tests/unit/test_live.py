"""Live edits equal weight edits, and leave no trace."""

from __future__ import annotations

import copy

import pytest
import torch

from excise import Edit, EditableModel
from excise.edit import LowRank, SiteEdit, operators
from excise.errors import EditMismatchError
from zoo.tiny import CONFIGS, build, random_tokens

RANK_TWO = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))


def edited_weights(model: EditableModel, edit: Edit) -> torch.nn.Module:
    """A copy of the model with the operators applied to its weights: what baking does."""
    twin = copy.deepcopy(model.hf_model)
    parameters = dict(twin.named_parameters())
    for site in edit.sites:
        weight = parameters[site.writer.parameter]
        weight.data = operators.apply(weight.data, site.changes, axis=site.writer.axis)
        if site.writer.bias is not None:
            bias = parameters[site.writer.bias]
            bias.data = operators.apply_bias(bias.data, site.changes)
    return twin


@torch.no_grad()
def assert_live_equals_weights(model: EditableModel, edit: Edit) -> None:
    tokens = random_tokens()
    base = model.hf_model(tokens).logits
    with model.edited(edit):
        live = model.hf_model(tokens).logits
    scale = base.abs().max()
    assert (live - edited_weights(model, edit)(tokens).logits).abs().max() < 1e-5 * scale
    assert (live - base).abs().max() > 1e-2 * scale
    assert torch.equal(model.hf_model(tokens).logits, base)


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("norm", ["none", "column"])
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_projection(kind: str, norm: str, embedding: bool) -> None:
    model = EditableModel(build(kind))
    edit = Edit.project(model.survey, RANK_TWO, strength=0.8, norm=norm, embedding=embedding)  # type: ignore[arg-type]
    assert_live_equals_weights(model, edit)


def test_sum_of_edits() -> None:
    model = EditableModel(build("llama"))
    first = Edit.project(model.survey, RANK_TWO[0], strength=1.0, roles=["mlp"])
    second = Edit.project(model.survey, RANK_TWO[1], strength=0.5, norm="column")
    assert_live_equals_weights(model, first + second)


def low_rank(model: EditableModel, *, seed: int = 0, shared: bool = False) -> Edit:
    """A random change of rank 2 at every writer but the embeddings; `shared`: one left factor for all experts."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.hf_model.named_parameters())
    sites = []
    for writer in model.survey.writers:
        shape = parameters[writer.parameter].shape
        if writer.role == "embedding":
            continue
        width = shape[-1] if writer.axis < len(shape) - 1 else shape[-2]
        experts = shape[:1] if len(shape) == 3 else ()
        left = 0.3 * torch.randn(*(() if shared else experts), 64, 2, generator=generator)
        right = 0.3 * torch.randn(*experts, 2, width, generator=generator)
        sites.append(SiteEdit(writer, (LowRank(left, right),)))
    return Edit(tuple(sites), model.identity)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe"])
def test_low_rank(kind: str) -> None:
    model = EditableModel(build(kind))
    assert_live_equals_weights(model, low_rank(model))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe", "gpt_oss"])
def test_sums_with_low_rank_changes(kind: str) -> None:
    model = EditableModel(build(kind))
    first, second = low_rank(model, seed=0), low_rank(model, seed=1, shared=True)
    assert {len(site.changes) for site in (first + second).sites} == {1}
    assert_live_equals_weights(model, first + second)
    assert_live_equals_weights(model, first + Edit.project(model.survey, RANK_TWO, strength=0.8))
    assert_live_equals_weights(model, first + Edit.project(model.survey, RANK_TWO, strength=0.8, norm="column"))


def test_sums_need_no_weight_where_hooks_can_do() -> None:
    model = EditableModel(build("gpt2"))
    unmerged = tuple(
        SiteEdit(one.writer, (*one.changes, *other.changes))
        for one, other in zip(low_rank(model).sites, low_rank(model, seed=1).sites, strict=True)
    )
    projections = Edit.project(model.survey, RANK_TWO, strength=0.8)
    for edit in (
        low_rank(model) + low_rank(model, seed=1),
        Edit(unmerged, model.identity),
        low_rank(model) + projections,
    ):
        weights = {name: weight.data_ptr() for name, weight in model.hf_model.named_parameters()}
        with model.edited(edit):
            assert {name: weight.data_ptr() for name, weight in model.hf_model.named_parameters()} == weights
        assert_live_equals_weights(model, edit)


def test_no_op_is_the_base_bit_for_bit() -> None:
    model = EditableModel(build("gpt2"))
    tokens = random_tokens()
    base = model.hf_model(tokens).logits
    for edit in (Edit.empty(model.survey), Edit.project(model.survey, RANK_TWO, strength=0.0)):
        with model.edited(edit):
            assert torch.equal(model.hf_model(tokens).logits, base)


def test_an_error_inside_the_block_restores_the_model() -> None:
    model = EditableModel(build("qwen3_moe"))
    tokens = random_tokens()
    base = model.hf_model(tokens).logits
    edit = Edit.project(model.survey, RANK_TWO, norm="column")
    with pytest.raises(RuntimeError, match="stop"), model.edited(edit):
        raise RuntimeError("stop")
    assert torch.equal(model.hf_model(tokens).logits, base)


def test_blocks_nest() -> None:
    model = EditableModel(build("llama"))
    edit = Edit.project(model.survey, RANK_TWO[0], embedding=True)
    with model.edited(edit):
        outer = model.exposure(RANK_TWO[0])
        with model.edited(Edit.project(model.survey, RANK_TWO[1], embedding=True)):
            assert model.exposure(RANK_TWO[1]) < 1e-4
        assert model.exposure(RANK_TWO[0]) == outer < 1e-4


def test_an_edit_of_another_model_is_refused() -> None:
    edit = Edit.project(EditableModel(build("llama")).survey, RANK_TWO)
    other = EditableModel(build("gpt2"))
    with pytest.raises(EditMismatchError), other.edited(edit):
        pass
