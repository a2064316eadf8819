"""Properties of the operators, on every layout in which weights write to the residual stream."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.edit import LowRank, Norm, Projection, operators, orthonormal

# Shapes by layout: which axis is the residual one is known, never guessed; several are square on purpose.
LAYOUTS = {
    "linear": ((16, 24), 0),
    "square": ((16, 16), 0),
    "conv1d": ((24, 16), 1),
    "square conv1d": ((16, 16), 1),
    "experts": ((3, 16, 24), 1),
    "square experts": ((3, 16, 16), 1),
    "transposed experts": ((3, 24, 16), 2),
    "square transposed experts": ((3, 16, 16), 2),
    "embedding": ((40, 16), 1),
    "vector": ((16,), 0),
}
HIDDEN = 16
settings.register_profile("operators", max_examples=40, deadline=None)
settings.load_profile("operators")

layouts = st.sampled_from(sorted(LAYOUTS))
seeds = st.integers(0, 10_000)
ranks = st.integers(1, 4)
strengths = st.floats(-1.5, 2.0).filter(lambda value: abs(value) > 1e-3)
norms: st.SearchStrategy[Norm] = st.sampled_from(["none", "column"])


def draw(layout: str, seed: int) -> tuple[torch.Tensor, int]:
    shape, axis = LAYOUTS[layout]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)), axis


def directions(rank: int, seed: int) -> torch.Tensor:
    return orthonormal(torch.randn(rank, HIDDEN, generator=torch.Generator().manual_seed(seed + 1)), hidden=HIDDEN)


def along(weight: torch.Tensor, basis: torch.Tensor, axis: int) -> torch.Tensor:
    """V w for every column w."""
    return weight.double().movedim(axis, -1) @ basis.double().T


def lengths(weight: torch.Tensor, axis: int) -> torch.Tensor:
    return weight.double().norm(dim=axis)


@given(layouts, seeds, ranks, norms)
def test_full_strength_removes_the_directions_on_the_residual_axis(
    layout: str, seed: int, rank: int, norm: Norm
) -> None:
    weight, axis = draw(layout, seed)
    basis = directions(rank, seed)
    edited = operators.apply(weight, (Projection(basis, 1.0, norm),), axis=axis)
    assert edited.shape == weight.shape
    assert along(edited, basis, axis).abs().max() < 1e-5


@given(layouts, seeds, ranks, strengths)
def test_strength_scales_the_part_along_the_directions(layout: str, seed: int, rank: int, strength: float) -> None:
    weight, axis = draw(layout, seed)
    basis = directions(rank, seed)
    edited = operators.apply(weight, (Projection(basis, strength),), axis=axis)
    torch.testing.assert_close(
        along(edited, basis, axis), (1 - strength) * along(weight, basis, axis), atol=1e-4, rtol=1e-4
    )


@given(layouts, seeds, ranks, norms, strengths)
def test_what_is_orthogonal_keeps_its_direction(layout: str, seed: int, rank: int, norm: Norm, strength: float) -> None:
    weight, axis = draw(layout, seed)
    basis = directions(rank, seed)
    edited = operators.apply(weight, (Projection(basis, strength, norm),), axis=axis)
    rest, before = (
        columns - (columns @ basis.double().T) @ basis.double()
        for columns in (edited.double().movedim(axis, -1), weight.double().movedim(axis, -1))
    )
    scale = rest.norm(dim=-1, keepdim=True) / before.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(rest, before * scale, atol=1e-4, rtol=1e-4)
    if norm == "none":
        torch.testing.assert_close(scale, torch.ones_like(scale), atol=1e-5, rtol=1e-5)


@given(layouts, seeds, ranks, strengths)
def test_column_norms_are_kept_exactly(layout: str, seed: int, rank: int, strength: float) -> None:
    weight, axis = draw(layout, seed)
    edited = operators.apply(weight, (Projection(directions(rank, seed), strength, "column"),), axis=axis)
    torch.testing.assert_close(lengths(edited, axis), lengths(weight, axis), atol=1e-6, rtol=1e-6)


@given(layouts, seeds, ranks, strengths)
def test_column_scale_is_what_the_column_mode_does(layout: str, seed: int, rank: int, strength: float) -> None:
    weight, axis = draw(layout, seed)
    basis = directions(rank, seed)
    scale = operators.column_scale(weight, Projection(basis, strength, "column"), axis=axis)
    plain = operators.apply(weight, (Projection(basis, strength),), axis=axis)
    edited = operators.apply(weight, (Projection(basis, strength, "column"),), axis=axis)
    torch.testing.assert_close(plain * scale.unsqueeze(axis), edited, atol=1e-5, rtol=1e-5)


@given(seeds, ranks)
def test_a_column_inside_the_directions_becomes_zero_not_nan(seed: int, rank: int) -> None:
    basis = directions(rank, seed)
    weight = torch.cat([basis.T, torch.zeros(HIDDEN, 1)], dim=1)
    edited = operators.apply(weight, (Projection(basis, 1.0, "column"),), axis=0)
    assert torch.isfinite(edited).all()
    assert edited.abs().max() < 1e-5


@given(layouts, seeds, strengths, strengths)
def test_deltas_of_several_changes_add_up(layout: str, seed: int, one: float, other: float) -> None:
    weight, axis = draw(layout, seed)
    changes = (Projection(directions(1, seed), one), Projection(directions(2, seed + 7), other, "column"))
    together = operators.delta(weight, changes, axis=axis)
    apart = sum(operators.delta(weight, (change,), axis=axis) for change in changes)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


@given(layouts, seeds, strengths)
def test_scaling_a_projection_scales_its_delta(layout: str, seed: int, factor: float) -> None:
    weight, axis = draw(layout, seed)
    change = Projection(directions(2, seed), 0.7)
    scaled = operators.delta(weight, (change.scaled(factor),), axis=axis)
    torch.testing.assert_close(scaled, factor * operators.delta(weight, (change,), axis=axis), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", ["linear", "conv1d", "experts", "transposed experts", "embedding"])
@pytest.mark.parametrize("shared", [False, True])
def test_low_rank_is_the_product_of_its_factors(layout: str, shared: bool) -> None:
    shape, axis = LAYOUTS[layout]
    weight, _ = draw(layout, 0)
    bank = shape[:1] if len(shape) == 3 else ()
    width = next(size for dim, size in enumerate(shape) if dim != axis and (not bank or dim > 0))
    left = torch.randn(*(() if shared else bank), HIDDEN, 2)
    right = torch.randn(*bank, 2, width)
    product = left @ right
    expected = product if axis == len(bank) else product.mT
    torch.testing.assert_close(operators.delta(weight, (LowRank(left, right),), axis=axis), expected)


def test_a_change_is_computed_where_the_weight_is() -> None:
    changes = (LowRank(torch.randn(16, 2), torch.randn(2, 24)), Projection(directions(2, 0), 0.5))
    assert operators.delta(torch.empty(16, 24, device="meta"), changes, axis=0).device.type == "meta"


@given(layouts, seeds)
def test_the_base_weight_is_not_touched(layout: str, seed: int) -> None:
    weight, axis = draw(layout, seed)
    before = weight.clone()
    operators.apply(weight, (Projection(directions(1, seed), 1.0, "column"),), axis=axis)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    weight = torch.randn(16, 24).to(dtype)
    changes = (Projection(directions(2, 3), 0.9), Projection(directions(1, 4), 0.3))
    exact = weight.float() + operators.delta(weight.float(), changes, axis=0)
    edited = operators.apply(weight, changes, axis=0)
    assert edited.dtype == dtype
    assert torch.equal(edited, exact.to(dtype))


@given(seeds, ranks, strengths)
def test_bias_is_projected_like_the_output_it_is_added_to(seed: int, rank: int, strength: float) -> None:
    weight, _ = draw("linear", seed)
    bias = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed + 2))
    inputs = torch.randn(5, 24)
    change = Projection(directions(rank, seed), strength)
    output = inputs @ weight.T + bias
    expected = output + operators.output_delta(output, change)
    edited = operators.apply(weight, (change,), axis=0)
    torch.testing.assert_close(
        inputs @ edited.T + operators.apply_bias(bias, (change,)), expected, atol=1e-4, rtol=1e-4
    )


def test_no_change_is_no_change() -> None:
    weight, axis = draw("experts", 0)
    assert torch.equal(operators.apply(weight, (), axis=axis), weight)
    assert torch.equal(operators.apply_bias(weight[0, :, 0], ()), weight[0, :, 0])
