"""Masks: neurons, heads and experts are removed exactly, live, in the weights and in a baked checkpoint alike."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from excise import Edit, EditableModel, Survey
from excise.bake import bake, verify
from excise.edit import LowRank, Mask, ModelIdentity, Projection, SiteEdit, Writer, operators, orthonormal
from excise.errors import EditError, EditMismatchError
from excise.model.live import applied
from zoo.packed import Packed
from zoo.tiny import build, random_tokens

# Which axis is the residual one, and the shape of what is left without it.
LAYOUTS = {
    "linear": ((16, 24), 0),
    "conv1d": ((24, 16), 1),
    "experts": ((3, 16, 24), 1),
    "transposed experts": ((3, 24, 16), 2),
    "square transposed experts": ((3, 16, 16), 2),
}
KINDS = ["llama", "gpt2", "gemma2", "mixtral", "qwen3_moe", "gpt_oss"]


def random_masks(model: EditableModel, *, only: str | None = None) -> dict[str, torch.Tensor]:
    """Factors between 0 and 2 for the inputs of every writer in a layer, a third of them 0."""
    generator, masks = torch.Generator().manual_seed(0), {}
    parameters = dict(model.hf_model.named_parameters())
    for writer in model.survey.writers:
        if writer.role == "embedding" or only not in (None, writer.role):
            continue
        shape = parameters[writer.parameter].movedim(writer.axis, -1).shape[:-1]
        factors = 2 * torch.rand(shape, generator=generator)
        masks[writer.parameter] = factors * (torch.rand(shape, generator=generator) > 1 / 3)
    return masks


def with_masked_weights(model: EditableModel, masks: dict[str, torch.Tensor]) -> torch.nn.Module:
    twin = copy.deepcopy(model.hf_model)
    parameters = dict(twin.named_parameters())
    for writer in model.survey.writers:
        if writer.parameter in masks:
            weight = parameters[writer.parameter]
            weight.data = weight.data * masks[writer.parameter].unsqueeze(writer.axis)
    return twin


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_mask_scales_columns(layout: str) -> None:
    shape, axis = LAYOUTS[layout]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    scale = torch.ones(*(size for index, size in enumerate(shape) if index != axis))
    scale[..., 3], scale[..., 5] = 0.0, -0.5
    edited = operators.apply(weight, (Mask(scale),), axis=axis)
    torch.testing.assert_close(edited, weight * scale.unsqueeze(axis))
    assert bool((edited.movedim(axis, -1)[..., 3, :] == 0).all())
    kept = [index for index in range(scale.shape[-1]) if index not in (3, 5)]
    assert torch.equal(edited.movedim(axis, -1)[..., kept, :], weight.movedim(axis, -1)[..., kept, :])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_zero_removes_exactly_in_low_precision(dtype: torch.dtype) -> None:
    weight = torch.randn(16, 24).to(dtype)
    scale = torch.ones(24)
    scale[:8] = 0.0
    edited = operators.apply(weight, (Mask(scale),), axis=0)
    assert edited.dtype == dtype
    assert not edited[:, :8].any()
    assert torch.equal(edited[:, 8:], weight[:, 8:])


def test_one_factor_stands_for_a_whole_expert() -> None:
    weight = torch.randn(3, 16, 24)
    edited = operators.apply(weight, (Mask(torch.tensor([[1.0], [0.0], [1.0]])),), axis=1)
    assert not edited[1].any()
    assert torch.equal(edited[[0, 2]], weight[[0, 2]])


def test_a_bias_is_left_as_it_is() -> None:
    bias = torch.randn(16)
    assert torch.equal(operators.apply_bias(bias, (Mask(torch.zeros(24)),)), bias)


def test_scaling_and_sums_are_those_of_the_weight_changes() -> None:
    weight = torch.randn(16, 24)
    one, other = Mask(torch.rand(24)), Mask(torch.rand(24))
    delta = operators.delta(weight, (one,), axis=0)
    torch.testing.assert_close(operators.delta(weight, (one.scaled(0.25),), axis=0), 0.25 * delta)
    both = one.plus(other)
    assert both is not None
    torch.testing.assert_close(
        operators.delta(weight, (both,), axis=0), delta + operators.delta(weight, (other,), axis=0)
    )
    bank = Mask(torch.rand(3, 1)).plus(Mask(torch.rand(3, 24)))
    assert bank is not None
    assert bank.scale.shape == (3, 24)
    assert one.plus(Projection(orthonormal(torch.randn(16), hidden=16), 1.0)) is None
    assert one.plus(LowRank(torch.zeros(16, 1), torch.zeros(1, 24))) is None


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_live_equals_weights(kind: str) -> None:
    model = EditableModel(build(kind))
    masks, tokens = random_masks(model), random_tokens()
    base = model.hf_model(tokens).logits
    with model.edited(Edit.mask(model.survey, masks)):
        live = model.hf_model(tokens).logits
    assert (live - with_masked_weights(model, masks)(tokens).logits).abs().max() < 1e-5 * base.abs().max()
    assert (live - base).abs().max() > 1e-2 * base.abs().max()
    assert torch.equal(model.hf_model(tokens).logits, base)


@torch.no_grad()
def test_live_with_a_projection_equals_weights() -> None:
    model = EditableModel(build("llama"))
    direction = torch.randn(64, generator=torch.Generator().manual_seed(3))
    edit = Edit.mask(model.survey, random_masks(model)) + Edit.project(model.survey, direction, strength=0.7)
    tokens, twin = random_tokens(), copy.deepcopy(model.hf_model)
    for site in edit.sites:
        weight = twin.get_parameter(site.writer.parameter)
        weight.data = operators.apply(weight.data, site.changes, axis=site.writer.axis)
    with model.edited(edit):
        live = model.hf_model(tokens).logits
    torch.testing.assert_close(live, twin(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_baked_equals_weights(kind: str, tmp_path: Path) -> None:
    build(kind).save_pretrained(tmp_path / "base")
    model = EditableModel(build(kind))
    masks = random_masks(model)
    edit = Edit.mask(model.survey, masks)
    bake(tmp_path / "base", edit, tmp_path / "out", force=True)
    report = verify(tmp_path / "out", base=tmp_path / "base", edit=edit, force=True)
    assert report.passed, report.to_json()
    twin = with_masked_weights(model, masks)
    baked = type(model.hf_model).from_pretrained(tmp_path / "out")
    for parameter in masks:
        torch.testing.assert_close(baked.get_parameter(parameter), twin.get_parameter(parameter), rtol=1e-6, atol=1e-7)


def test_whole_experts_bake_into_their_own_tensors(tmp_path: Path) -> None:
    model = EditableModel(build("qwen3_moe"))
    model.hf_model.save_pretrained(tmp_path / "base")
    bank = next(writer.parameter for writer in model.survey.writers if writer.role == "expert")
    edit = Edit.mask(model.survey, {bank: torch.tensor([[1.0], [0.0], [1.0], [1.0]])})
    bake(tmp_path / "base", edit, tmp_path / "out", force=True)
    baked = type(model.hf_model).from_pretrained(tmp_path / "out").get_parameter(bank)
    assert not baked[1].any()
    assert torch.equal(baked[[0, 2, 3]], model.hf_model.get_parameter(bank)[[0, 2, 3]])


def test_round_trip(tmp_path: Path) -> None:
    survey = EditableModel(build("qwen3_moe")).survey
    parameter = next(writer.parameter for writer in survey.writers if writer.role == "expert")
    saved = Edit.mask(survey, {parameter: torch.tensor([[1.0], [0.0], [1.0], [0.5]])})
    saved.save(tmp_path / "mask.safetensors")
    loaded = Edit.load(tmp_path / "mask.safetensors")
    (change,) = loaded.sites[0].changes
    assert isinstance(change, Mask)
    assert change.scale.tolist() == [[1.0], [0.0], [1.0], [0.5]]
    assert loaded.sites[0].writer == saved.sites[0].writer
    assert (0.0 * loaded).sites == ()


def test_what_changes_nothing_is_left_out() -> None:
    survey = EditableModel(build("llama")).survey
    parameters = [writer.parameter for writer in survey.writers if writer.role == "mlp"]
    edit = Edit.mask(survey, {parameters[0]: torch.ones(96), parameters[1]: torch.zeros(96)})
    assert [site.writer.parameter for site in edit.sites] == [parameters[1]]


@pytest.mark.parametrize(
    ("parameter", "scale", "message"),
    [
        ("nothing.weight", torch.zeros(96), "no writer"),
        ("model.layers.0.mlp.down_proj.weight", torch.zeros(64, 96), "shape"),
        ("model.layers.0.mlp.down_proj.weight", torch.full((96,), float("nan")), "not finite"),
    ],
)
def test_masks_that_cannot_be_used(survey: Survey, parameter: str, scale: torch.Tensor, message: str) -> None:
    with pytest.raises(EditError, match=message) as error:
        Edit.mask(survey, {parameter: scale})
    assert error.value.hint


@pytest.fixture(scope="module")
def survey() -> Survey:
    return EditableModel(build("llama")).survey


def test_a_mask_of_another_width_is_refused(tmp_path: Path) -> None:
    model = EditableModel(build("llama"))
    model.hf_model.save_pretrained(tmp_path / "base")
    edit = Edit.mask(model.survey, {"model.layers.0.mlp.down_proj.weight": torch.zeros(64)})
    with pytest.raises(EditMismatchError, match="masks inputs of shape"), model.edited(edit):
        pass
    with pytest.raises(EditMismatchError, match="masks inputs of shape"):
        bake(tmp_path / "base", edit, tmp_path / "out", force=True)


@torch.no_grad()
def test_a_quantised_product_is_masked_by_its_input() -> None:
    writer = Writer("0.weight", 0, "mlp", 0, module="0")
    packed = Packed(torch.randn(64, 96))
    scale = torch.rand(96)
    edit = Edit((SiteEdit(writer, (Mask(scale),)),), ModelIdentity("packed", "packed"))
    inputs = torch.randn(5, 96)
    with applied(torch.nn.Sequential(packed), edit):
        torch.testing.assert_close(packed(inputs), (inputs * scale) @ (packed.weight.float() * packed.step).T)
