"""Edits as values: composition, scaling, and the file format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from excise.edit import Edit, LowRank, ModelIdentity, Projection, SiteEdit, Writer, operators, orthonormal
from excise.errors import EditError, EditMismatchError

IDENTITY = ModelIdentity("tiny", "architecture", "main", "weights")
WEIGHT = torch.randn(8, 12, generator=torch.Generator().manual_seed(9))


def basis(seed: int, rank: int = 1) -> torch.Tensor:
    return orthonormal(torch.randn(rank, 8, generator=torch.Generator().manual_seed(seed)), hidden=8)


def writer(layer: int) -> Writer:
    return Writer(f"layers.{layer}.o.weight", layer, "attention", 0, bias=f"layers.{layer}.o.bias", tied=("head",))


def edit(*changes: Projection | LowRank, layer: int = 0) -> Edit:
    return Edit((SiteEdit(writer(layer), changes),), IDENTITY, {"seed": 1}, {"rate": 0.1})


def delta(value: Edit, layer: int = 0) -> torch.Tensor:
    site = value.site(writer(layer).parameter)
    return torch.zeros_like(WEIGHT) if site is None else operators.delta(WEIGHT, site.changes, axis=0)


def test_sum_adds_the_weight_changes() -> None:
    one, other = edit(Projection(basis(1), 0.5)), edit(Projection(basis(2, 2), 1.0, "column"), LowRank(*factors()))
    torch.testing.assert_close(delta(one + other), delta(one) + delta(other))
    assert len((one + edit(Projection(basis(1), 0.5), layer=3)).sites) == 2


def test_equal_projections_merge_into_one() -> None:
    total = edit(Projection(basis(1), 0.5)) + edit(Projection(basis(1), 0.25))
    (change,) = total.sites[0].changes
    assert isinstance(change, Projection)
    assert change.strength == pytest.approx(0.75)
    assert len((edit(Projection(basis(1), 0.5, "column")) + edit(Projection(basis(1), 0.5))).sites[0].changes) == 2


def test_low_rank_changes_merge_into_one() -> None:
    one, other = edit(LowRank(*factors(1))), edit(LowRank(*factors(2)))
    total = one + other + edit(Projection(basis(1), 0.5))
    low_rank, projection = total.sites[0].changes
    assert isinstance(low_rank, LowRank)
    assert isinstance(projection, Projection)
    assert low_rank.left.shape[-1] == low_rank.right.shape[-2] == 4
    torch.testing.assert_close(delta(total), delta(one) + delta(other) + delta(edit(projection)))
    assert delta(one + -1.0 * one).abs().max() < 1e-6


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(("shared", "also"), [(True, True), (True, False), (False, True), (False, False)])
def test_low_rank_changes_of_a_bank_merge(axis: int, shared: bool, also: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def bank(shared: bool, rank: int) -> LowRank:
        experts = () if shared else (3,)
        left = torch.randn(*experts, 8, rank, generator=generator)
        return LowRank(left, torch.randn(3, rank, 12, generator=generator))

    one, other = bank(shared, 1), bank(also, 2)
    weight = torch.randn(3, 8, 12, generator=generator).movedim(1, axis)
    total = one.plus(other)
    assert total is not None
    assert total.left.ndim == (2 if shared and also else 3)
    apart = operators.delta(weight, (one, other), axis=axis)
    torch.testing.assert_close(operators.delta(weight, (total,), axis=axis), apart)


@pytest.mark.parametrize(
    ("left", "right"), [((8, 2), (3, 2, 12)), ((9, 2), (2, 12)), ((8, 2), (2, 11)), ((3, 8, 2), (3, 2, 12))]
)
def test_low_rank_changes_of_other_weights_stay_apart(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    one, other = LowRank(*factors()), LowRank(torch.ones(left), torch.ones(right))
    assert one.plus(other) is None
    assert other.plus(one) is None
    assert one.plus(Projection(basis(1), 0.5)) is None


def test_an_edit_and_its_negative_cancel() -> None:
    one = edit(Projection(basis(1, 3), 0.8))
    assert delta(one + -1.0 * one).abs().max() < 1e-6


def test_scaling() -> None:
    one = edit(Projection(basis(1), 0.8), LowRank(*factors()))
    torch.testing.assert_close(delta(0.5 * one), 0.5 * delta(one))
    assert (0.0 * one).sites == ()
    assert (one * 2.0).scores == {}


def test_edits_of_different_models_do_not_add() -> None:
    other = Edit((), ModelIdentity("other", "another architecture"))
    with pytest.raises(EditMismatchError, match="architecture"):
        edit() + other
    with pytest.raises(EditMismatchError, match="other weights"):
        edit() + Edit((), ModelIdentity("other", "architecture", None, "others"))


changes = st.lists(
    st.one_of(
        st.builds(
            lambda seed, rank, strength, norm: Projection(basis(seed, rank), strength, norm),
            st.integers(0, 99),
            st.integers(1, 3),
            st.floats(-2, 2),
            st.sampled_from(["none", "column"]),
        ),
        st.builds(lambda seed: LowRank(*factors(seed)), st.integers(0, 99)),
    ),
    max_size=4,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(changes, max_size=3), st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=3))
def test_round_trip(tmp_path: Path, per_layer: list[list[Projection | LowRank]], scores: dict[str, float]) -> None:
    sites = tuple(SiteEdit(writer(layer), tuple(found)) for layer, found in enumerate(per_layer))
    saved = Edit(sites, IDENTITY, {"seed": 3, "prompts": {"fit": "abc"}}, scores)
    saved.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert (loaded.identity, loaded.provenance, loaded.scores) == (IDENTITY, saved.provenance, saved.scores)
    assert [site.writer for site in loaded.sites] == [site.writer for site in sites]
    for layer in range(len(sites)):
        assert torch.equal(delta(loaded, layer), delta(saved, layer))
    assert [path.name for path in tmp_path.iterdir()] == ["edit.safetensors"]


def test_a_shared_direction_is_stored_once(tmp_path: Path) -> None:
    shared = basis(1)
    sites = tuple(SiteEdit(writer(layer), (Projection(shared, 1.0),)) for layer in range(60))
    Edit(sites, IDENTITY).save(tmp_path / "edit.safetensors")
    with safe_open(tmp_path / "edit.safetensors", "pt") as file:
        assert len(file.keys()) == 1


def test_equal_bytes_of_another_shape_stay_apart(tmp_path: Path) -> None:
    saved = edit(LowRank(torch.zeros(8, 12), torch.zeros(12, 8)))
    saved.save(tmp_path / "edit.safetensors")
    (change,) = Edit.load(tmp_path / "edit.safetensors").sites[0].changes
    assert isinstance(change, LowRank)
    assert (change.left.shape, change.right.shape) == ((8, 12), (12, 8))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="no edit file"):
        Edit.load(tmp_path / "nothing.safetensors")


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "edit.safetensors"
    edit(Projection(basis(1), 1.0)).save(path)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(EditError, match="not a readable safetensors file") as error:
            Edit.load(path)
        assert error.value.hint


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(64), json.dumps({"a": 1}).encode()])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "edit.safetensors"
    path.write_bytes(content)
    with pytest.raises(EditError):
        Edit.load(path)


def test_weights_are_not_an_edit(tmp_path: Path) -> None:
    save_file({"weight": WEIGHT}, tmp_path / "model.safetensors")
    with pytest.raises(EditError, match="holds weights, not an edit"):
        Edit.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        lambda header: header.update(schema=99),
        lambda header: header.pop("schema"),
        lambda header: header.pop("sites"),
        lambda header: header["sites"][0]["changes"][0].update(kind="unknown"),
        lambda header: header["sites"][0]["changes"][0].update(directions="gone"),
        lambda header: header["sites"][0]["writer"].pop("axis"),
        lambda header: header.update(identity={"color": "red"}),
        lambda header: header.update(sites=3),
    ],
)
def test_a_damaged_header(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "edit.safetensors"
    edit(Projection(basis(1), 1.0)).save(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["excise_edit"])
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    damage(header)  # type: ignore[operator]
    save_file(tensors, path, metadata={"excise_edit": json.dumps(header)})
    with pytest.raises(EditError):
        Edit.load(path)


def test_a_header_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "edit.safetensors"
    save_file({"x": WEIGHT}, path, metadata={"excise_edit": "{"})
    with pytest.raises(EditError):
        Edit.load(path)


def test_a_later_minor_version_may_add_keys(tmp_path: Path) -> None:
    path = tmp_path / "edit.safetensors"
    edit(Projection(basis(1), 1.0)).save(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["excise_edit"])
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    header["sites"][0]["writer"]["colour"] = "red"
    header["mood"] = "good"
    save_file(tensors, path, metadata={"excise_edit": json.dumps(header)})
    assert Edit.load(path).sites[0].writer == writer(0)


@pytest.mark.parametrize("rows", [torch.zeros(8), torch.full((8,), float("nan")), torch.ones(2, 8), torch.ones(7)])
def test_directions_that_cannot_be_used(rows: torch.Tensor) -> None:
    with pytest.raises(EditError):
        orthonormal(rows, hidden=8)


def test_orthonormal_keeps_order_and_sign() -> None:
    rows = torch.randn(3, 8)
    found = orthonormal(rows, hidden=8)
    torch.testing.assert_close(found @ found.T, torch.eye(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[0], rows[0] / rows[0].norm())
    assert all(float(found[row] @ rows[row]) > 0 for row in range(3))


def factors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 2, generator=generator), torch.randn(2, 12, generator=generator)
