"""Directions: their formulas, their interpolation, what selects among them, and their file."""

from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score, silhouette_score

from excise.directions import Directions, candidate_layers, known_methods, measure_separability, method_named, register
from excise.directions import methods as registry
from excise.errors import InputError

POSITIONS, LAYERS, HIDDEN = 2, 10, 16


def residuals(*, shift: torch.Tensor, rows: int = 24, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(rows, POSITIONS, LAYERS, HIDDEN, generator=torch.Generator().manual_seed(seed))
    return noise + shift


def planted(strength: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets moved along one vector by `strength` (position, layer)."""
    vector = torch.nn.functional.normalize(torch.randn(HIDDEN, generator=torch.Generator().manual_seed(9)), dim=0)
    target = residuals(shift=3.0 + strength[..., None] * vector, seed=1)
    return target, residuals(shift=torch.full((HIDDEN,), 3.0), seed=2), vector


def directions_of(strength: torch.Tensor, method: str = "mean-difference") -> Directions:
    target, baseline, _ = planted(strength)
    return Directions.of_means(
        target.double().mean(dim=0),
        baseline.double().mean(dim=0),
        positions=("-1", "+1"),
        method=method,
        separability=measure_separability(target, baseline, method_named(method)),
    )


def ramp() -> torch.Tensor:
    """Grows with depth at the second position, and is largest in the last layers."""
    strength = torch.zeros(POSITIONS, LAYERS)
    strength[1] = torch.linspace(0, 30, LAYERS)
    return strength


def test_the_methods_are_what_their_papers_say() -> None:
    target, baseline = torch.randn(2, 3, 8).double(), torch.randn(2, 3, 8).double()
    difference = method_named("mean-difference")(target, baseline)
    torch.testing.assert_close(difference, target - baseline)
    projected = method_named("projected")(target, baseline)
    along = (projected * baseline).sum(dim=-1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-12, rtol=0)
    scale = (difference * baseline).sum(-1, keepdim=True) / baseline.square().sum(-1, keepdim=True)
    torch.testing.assert_close(projected, difference - scale * baseline)


def test_a_method_is_added_by_registering_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    register("backwards")(lambda target, baseline: baseline - target)
    assert "backwards" in known_methods()
    found = directions_of(ramp()).with_method("backwards")
    torch.testing.assert_close(found.vectors, -directions_of(ramp()).vectors)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="nonsense"):
        method_named("nonsense")


def test_the_planted_direction_is_found() -> None:
    found = directions_of(ramp())
    _, _, vector = planted(ramp())
    assert float(found.vectors[1, 7] @ vector) > 0.99
    torch.testing.assert_close(found.vectors.norm(dim=-1), torch.ones(POSITIONS, LAYERS))


def test_the_best_place_separates_and_is_never_in_the_last_fifth() -> None:
    found = directions_of(ramp())
    assert found.best[0] == 1
    assert 4 <= found.best[1] < candidate_layers(LAYERS) == 8
    torch.testing.assert_close(found.at_layer(0), found.vectors[found.best])
    torch.testing.assert_close(found.at_layer(9), found.vectors[found.best])


def test_separability_agrees_with_scikit_learn() -> None:
    target, baseline, _ = planted(ramp() / 8)
    found = measure_separability(target, baseline, method_named("mean-difference"))
    for position, layer in ((0, 3), (1, 2), (1, 8)):
        points = torch.cat([target[:, position, layer], baseline[:, position, layer]])
        classes = [1] * len(target) + [0] * len(baseline)
        assert float(found.silhouette[position, layer]) == pytest.approx(
            silhouette_score(points.numpy(), classes), abs=1e-4
        )
        halves = []
        for half in (0, 1):
            fitted = target[half::2, position, layer].mean(0) - baseline[half::2, position, layer].mean(0)
            shown, absent = (side[1 - half :: 2, position, layer] @ fitted for side in (target, baseline))
            halves.append(roc_auc_score([1] * len(shown) + [0] * len(absent), torch.cat([shown, absent]).numpy()))
        assert float(found.auc[position, layer]) == pytest.approx(sum(halves) / 2, abs=1e-6)


def test_what_does_not_separate_has_chance_auc() -> None:
    found = measure_separability(*planted(torch.zeros(POSITIONS, LAYERS))[:2], method_named("mean-difference"))
    assert abs(float(found.auc.mean()) - 0.5) < 0.1
    assert float(found.silhouette.abs().max()) < 0.1


def test_interpolation_hits_the_layers_and_stays_unit() -> None:
    found = directions_of(ramp())
    torch.testing.assert_close(found.vector(1, 4.0), found.vectors[1, 4])
    torch.testing.assert_close(found.vector(1, 99.0), found.vectors[1, LAYERS - 1])
    assert float(found.vector(1, 4.5).norm()) == pytest.approx(1.0, abs=1e-6)
    assert float(found.vector(1, 4.5) @ found.vectors[1, 4]) == pytest.approx(
        float(found.vector(1, 4.5) @ found.vectors[1, 5]), abs=1e-5
    )


def test_opposite_neighbours_do_not_cancel() -> None:
    found = directions_of(ramp())
    vectors = found.vectors.clone()
    vectors[1, 5] = -vectors[1, 4]
    opposite = Directions(vectors, *list(vars(found).values())[1:])
    assert float(opposite.vector(1, 4.5).norm()) == pytest.approx(1.0, abs=1e-5)


def test_another_choice_and_each_layers_own() -> None:
    found = directions_of(ramp())
    torch.testing.assert_close(found.selected(0, 3).at_layer(8), found.vectors[0, 3])
    own = found.per_layer(1)
    torch.testing.assert_close(own.at_layer(6), found.vectors[1, 6])
    torch.testing.assert_close(own.at_layer(-1), found.vectors[1, 0])
    with pytest.raises(InputError):
        found.selected(0, LAYERS)
    torch.testing.assert_close(found.cosine().diagonal(), torch.ones(LAYERS))


def test_where_nothing_differs_there_is_no_direction() -> None:
    same = torch.ones(POSITIONS, LAYERS, HIDDEN).double()
    target = same.clone()
    target[1, 4] += torch.arange(HIDDEN)
    rows = torch.randn(8, POSITIONS, LAYERS, HIDDEN)
    measured = measure_separability(rows, rows, method_named("mean-difference"))
    found = Directions.of_means(target, same, positions=("-1", "+1"), method="mean-difference", separability=measured)
    assert found.best == (1, 4)
    assert float(found.vectors[0].abs().max()) == 0.0


def test_the_other_method_needs_no_second_pass() -> None:
    found = directions_of(ramp())
    torch.testing.assert_close(
        found.with_method("projected").vectors, directions_of(ramp(), "projected").vectors, atol=1e-5, rtol=0
    )
    assert found.with_method("projected").best == found.best


def test_a_file_gives_back_the_same_directions(tmp_path: Path) -> None:
    found = directions_of(ramp()).selected(1, 2)
    found.save(tmp_path / "d.safetensors")
    loaded = Directions.load(tmp_path / "d.safetensors")
    assert loaded.best == (1, 2)
    assert loaded.positions == found.positions
    assert torch.equal(loaded.vectors, found.vectors)
    assert loaded.digest() == found.digest() != found.selected(1, 3).digest()
    assert loaded.to_json() == found.to_json()
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no directions at"):
        Directions.load(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="not a readable"):
        Directions.load(broken)
