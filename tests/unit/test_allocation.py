"""Strengths by quadratic programs: the programs, the slopes and curvatures they are made of, and the path."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from excise.activations import port_statistics
from excise.activations.port_statistics import PortStatistics
from excise.activations.second_moments import SecondMomentAccumulator
from excise.directions import Directions
from excise.edit import Edit
from excise.model.ports import Port, ports_of
from excise.search.allocation import path, step
from excise.search.factors import Factors
from excise.search.lessons import answers, learn, openings
from excise.search.sensitivity import Sensitivity, Watched, by_differences, by_gradients, gives_gradients
from excise.search.units import Kind, fisher_weighted, oblique, output_fisher, unit_factors
from zoo.taught import SIZES, found, refusing, taught


def _toy(seed: int, units: int = 3) -> Sensitivity:
    generator = torch.Generator().manual_seed(seed)
    roots = [torch.randn(units, units, generator=generator) for _ in range(2)]
    slopes = [torch.randn(units, generator=generator) for _ in range(2)]
    return Sensitivity(0.0, slopes[0].abs(), roots[0] @ roots[0].T, 0.0, -slopes[1].abs(), roots[1] @ roots[1].T)


def _model_of(toy: Sensitivity, change: Tensor, preserve: float, price: float) -> Tensor:
    """The quadratic model, for each row of changes."""
    slope = preserve * toy.damage_slope + toy.behavior_slope + price
    curvature = preserve * toy.damage_curvature + toy.behavior_curvature
    return change @ slope + 0.5 * ((change @ curvature) * change).sum(dim=-1)


@pytest.mark.parametrize("seed", range(6))
def test_a_program_is_solved_to_its_optimum(seed: int) -> None:
    """Against every point of a fine grid of the box."""
    toy, now, preserve, price = _toy(seed), torch.tensor([0.1, 1.0, 1.9]), 0.5, 0.02
    there = step(toy, now, preserve=preserve, price=price, reach=0.4, largest=2.0)
    sides = [torch.linspace(max(float(x) - 0.4, 0.0), min(float(x) + 0.4, 2.0), 41) for x in now]
    grid = torch.tensor(list(product(*(side.tolist() for side in sides))))
    values = _model_of(toy, grid - now, preserve, price)
    assert float(_model_of(toy, (there - now)[None], preserve, price)) <= float(values.min()) + 1e-5
    assert (there - grid[int(values.argmin())]).abs().max() <= 0.03
    assert (there >= 0).all()
    assert (there <= 2).all()


def test_a_unit_that_serves_nothing_is_switched_off_and_a_free_one_goes_as_far_as_it_may() -> None:
    toy = Sensitivity(
        0.0, torch.tensor([1.0, 0.0]), torch.eye(2) * 1e-3, 0.0, torch.tensor([0.0, -1.0]), torch.eye(2) * 1e-3
    )
    there = step(toy, torch.ones(2), preserve=1.0, reach=5.0, largest=2.0)
    torch.testing.assert_close(there, torch.tensor([0.0, 2.0]), rtol=0, atol=1e-6)


def test_the_path_grows_lighter_and_never_worse_than_where_it_begins() -> None:
    """On losses that are known everywhere: a quartic damage, a behavior that saturates."""
    cost, use = torch.tensor([1.0, 0.2, 0.5, 0.05]), torch.tensor([0.2, 1.0, 0.5, 0.0])

    def measure(strengths: Tensor) -> Sensitivity:
        drive = float(strengths @ use)
        damage = float((cost * strengths.square()).sum() + 0.1 * strengths.sum() ** 4)
        slope = 2 * cost * strengths + 0.4 * strengths.sum() ** 3
        behavior = 4.0 * torch.tensor(-drive).exp()
        return Sensitivity(
            damage,
            slope,
            2 * torch.diag(cost) + 1.2 * float(strengths.sum()) ** 2 * torch.ones(4, 4),
            float(behavior),
            -behavior * use,
            float(behavior) * torch.outer(use, use),
        )

    start = torch.ones(4)
    found_path = list(path(measure, start, [0.1, 0.3, 1.0, 3.0], rounds=8))
    before = measure(start)
    for each in found_path:
        assert each.preserve * each.damage + each.behavior <= each.preserve * before.damage + before.behavior
    damages = [each.damage for each in found_path]
    assert damages == sorted(damages, reverse=True)
    assert found_path[-1].strengths[3] == 0.0, "it does nothing for the behavior"


@dataclass(frozen=True)
class Room:
    """A tiny taught model, and what its writers read."""

    watched: Watched
    directions: Directions
    ports: tuple[Port, ...]
    statistics: dict[str, PortStatistics]

    def units(self, kind: Kind) -> Factors:
        return unit_factors(
            self.watched.model, self.ports, self.statistics, self.directions.per_layer(), kind=kind, weight=3.0
        )


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    model, behavior = taught(), refusing(tmp_path_factory.mktemp("prompts"))
    splits = behavior.splits(SIZES)
    directions = found(behavior, splits)
    lessons = learn(model, behavior, splits.fit)
    ports = ports_of(model.hf_model, model.survey).found
    strong = Edit.project(model.survey, directions.per_layer(), 1.0)
    begun = openings(model, lessons, strong)
    statistics = port_statistics.collect(model, ports, baseline=lessons.baseline, target=[*lessons.target, *begun])
    factors = unit_factors(model, ports, statistics, directions.per_layer(), kind="conditional", weight=3.0)
    learned = answers(model, behavior, lessons, [factors.edit(), strong])
    yield Room(Watched(model, factors, lessons, learned), directions, ports, statistics)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf_model.modules())
    assert all(parameter.requires_grad for parameter in model.hf_model.parameters())


@pytest.fixture
def watched(room: Room) -> Watched:
    """The closed forms, at every writer."""
    return room.watched


def test_gradients_and_differences_agree(watched: Watched) -> None:
    assert gives_gradients(watched)
    strengths = torch.full((watched.factors.units,), 0.6)
    exact = by_gradients(watched, strengths, samples=200)
    rough = by_differences(watched, strengths, step=1e-3)
    assert exact.damage == pytest.approx(rough.damage, rel=1e-4)
    assert exact.behavior == pytest.approx(rough.behavior, rel=1e-4)
    for name in ("damage_slope", "behavior_slope"):
        one, other = getattr(exact, name), getattr(rough, name)
        assert (one - other).norm() <= 0.05 * one.norm()
    for name, tolerance in (("damage_curvature", 0.25), ("behavior_curvature", 0.05)):
        one, other = getattr(exact, name), getattr(rough, name)
        assert (one - other).norm() <= tolerance * one.norm()


def test_slopes_are_those_of_the_losses(watched: Watched) -> None:
    strengths = torch.full((watched.factors.units,), 0.5)
    middle = by_gradients(watched, strengths)
    direction = middle.behavior_slope / middle.behavior_slope.norm()
    ahead, behind = (by_gradients(watched, strengths + sign * 0.02 * direction) for sign in (1, -1))
    for name in ("damage", "behavior"):
        measured = (getattr(ahead, name) - getattr(behind, name)) / 0.04
        assert float(getattr(middle, f"{name}_slope") @ direction) == pytest.approx(measured, rel=0.05, abs=1e-3)


def test_the_curvature_foretells_the_damage_of_a_light_edit(watched: Watched) -> None:
    """KL ≈ ½αᵀHα at zero, where its slope vanishes."""
    none = torch.zeros(watched.factors.units)
    at_rest = by_gradients(watched, none, samples=100)
    assert at_rest.damage == pytest.approx(0.0, abs=1e-5)
    assert float(at_rest.damage_slope.norm()) <= 1e-4
    light = torch.full_like(none, 0.05)
    expected = 0.5 * float(light @ at_rest.damage_curvature @ light)
    assert by_gradients(watched, light).damage == pytest.approx(expected, rel=0.3)


def test_rows_one_at_a_time_give_the_same(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a module does not keep rows apart."""
    strengths = torch.full((watched.factors.units,), 0.6)
    together = by_gradients(watched, strengths)
    monkeypatch.setattr("excise.search.sensitivity._rows_apart", lambda _: False)
    alone = by_gradients(watched, strengths)
    assert alone.damage == pytest.approx(together.damage, rel=1e-4)
    torch.testing.assert_close(alone.damage_slope, together.damage_slope, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(alone.behavior_curvature, together.behavior_curvature, rtol=1e-3, atol=1e-5)


def test_scaled_factors_are_the_edit_that_strengths_stand_for(watched: Watched) -> None:
    strengths = torch.linspace(0.0, 1.5, watched.factors.units)
    scaled = watched.factors.scaled(strengths)
    assert scaled.units == watched.factors.units - 1, "the one of strength 0 is gone"
    rows = [list(each.prompt) for each in watched.lessons.baseline[:2]]
    from excise.model.forward import last_logits, pad_id, pad_left

    model = watched.model
    batch = pad_left(rows, pad_id(model), model.device)
    with watched.factors.live(strengths):
        live = last_logits(model, batch, 1)
    with model.edited(scaled.edit()):
        edited = last_logits(model, batch, 1)
    torch.testing.assert_close(live, edited, rtol=1e-3, atol=1e-4)


def test_the_projection_unit_is_the_plain_projection(room: Room) -> None:
    """W′ = W − r rᵀW."""
    model = room.watched.model
    for site in room.units("projection").edit().sites:
        weight = model.hf_model.get_parameter(site.writer.parameter).detach()
        (change,) = site.changes
        direction = torch.nn.functional.normalize(change.left[:, 0], dim=0)
        torch.testing.assert_close(
            change.left @ change.right, -torch.outer(direction, direction @ weight), rtol=1e-3, atol=1e-4
        )


def test_an_oblique_projection_removes_the_direction_and_moves_baseline_states_least() -> None:
    """Against other projections that take r away just so: y − r(s·y) with s·r = 1."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4000, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    accumulator = SecondMomentAccumulator(6)
    accumulator.update(states)
    direction = torch.nn.functional.normalize(torch.randn(1, 6, generator=generator))
    found_row = oblique(accumulator.result(), direction)
    assert float((found_row * direction).sum()) == pytest.approx(1.0, rel=1e-5)
    moved = float((states @ found_row[0]).square().mean())
    plain = float((states @ direction[0]).square().mean())
    assert moved < plain
    for _ in range(50):
        other = found_row + 0.3 * torch.randn(1, 6, generator=generator)
        other = other / (other * direction).sum()
        assert moved <= float((states @ other[0]).square().mean()) * 1.02, "up to the ridge"


def test_the_fisher_matrix_foretells_what_moving_one_output_does(room: Room) -> None:
    """½ vᵀGv, for a random v, against the damage when its outputs all move by v at one token."""
    watched, model = room.watched, room.watched.model
    fishers = output_fisher(watched, samples=60)
    assert set(fishers) == {factor.port.writer.parameter for factor in watched.factors.factors}
    none = torch.zeros(watched.factors.units)
    generator = torch.Generator().manual_seed(0)
    baseline = watched.lessons.baseline
    longest = max(len(each.prompt) + len(each.response) - 1 for each in baseline)
    port = room.ports[2]
    moment = fishers[port.writer.parameter]
    assert moment.matrix is not None
    move = 0.02 * torch.randn(model.hidden, generator=generator)
    damage = 0.0
    for place in range(1, longest + 1):
        module = model.hf_model.get_submodule(port.module)
        handle = module.register_forward_hook(partial(_moved, move, place))
        damage += by_gradients(watched, none, samples=1).damage
        handle.remove()
    tokens = moment.count / 60 / len(baseline)  # of a row, those that anything depends on
    assert damage == pytest.approx(0.5 * tokens * float(move @ moment.matrix @ move), rel=0.3)


def _moved(move: Tensor, place: int, _: object, __: object, output: Tensor) -> Tensor:
    changed = output.clone()
    changed[:, -place] += move
    return changed


def test_weighted_left_factors_take_as_much_along_the_direction_for_less_damage(room: Room) -> None:
    factors = room.watched.factors
    weighted = fisher_weighted(factors, output_fisher(room.watched, samples=20))
    for one, other in zip(factors.factors, weighted.factors, strict=True):
        (plain_left, plain_right), (left, right) = one.rows(), other.rows()
        along = (plain_left @ left.T).item()
        torch.testing.assert_close(right * along, plain_right, rtol=1e-3, atol=1e-5)
    ones = torch.full((factors.units,), 0.3)
    before = by_gradients(room.watched, ones).damage
    after = by_gradients(Watched(room.watched.model, weighted, room.watched.lessons, room.watched.answers), ones).damage
    assert after < before
