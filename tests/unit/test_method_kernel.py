"""The kernel method: its shape, its space, and who proposes in it."""

import pytest
import torch
from optuna.distributions import CategoricalDistribution

from excise.behaviors import Behavior, Splits
from excise.directions import Directions
from excise.edit import Edit, Projection
from excise.search import Measured, Study, Task, Trial
from excise.search.methods.kernel import kernel_edit, kernel_space, kernel_weight, propose
from zoo.taught import taught

SHAPE = {
    "mlp.max_weight": 1.2,
    "mlp.max_weight_position": 3.0,
    "mlp.min_weight": 0.5,
    "mlp.min_weight_distance": 2.0,
}


@pytest.fixture
def task(behavior: Behavior, splits: Splits, directions: Directions) -> Task:
    return Task(taught(), behavior, splits, directions, Study(None, key="k"))


def test_the_weight_falls_to_the_minimum_and_is_nothing_beyond() -> None:
    weights = [kernel_weight(layer, SHAPE, "mlp") for layer in range(7)]
    assert weights == pytest.approx([0.0, 0.6, 0.9, 1.2, 0.9, 0.6, 0.0])


def test_every_set_of_values_in_the_space_is_an_edit(task: Task) -> None:
    space = kernel_space(task)
    history: list[Trial] = []
    for index in range(12):
        values = propose(history, space, seed=0, trials=12)
        assert values.keys() == space.keys()
        edit = kernel_edit(task, values)
        for site in edit.sites:
            (change,) = site.changes
            assert isinstance(change, Projection)
            assert change.norm == "column"
            assert change.strength == kernel_weight(site.writer.layer, values, site.writer.role)
        history.append(Trial(index, values, Measured(1 - index / 12, index / 12, index / 12), 0.0))


def directions_of(edit: Edit) -> list[torch.Tensor]:
    return [change.directions[0] for site in edit.sites for change in site.changes if isinstance(change, Projection)]


def test_directions_are_orthogonal_to_the_baseline_mean(task: Task) -> None:
    values = propose([], kernel_space(task), seed=0, trials=10)
    place = task.directions.positions.index("-1")
    edit = kernel_edit(task, {**values, "direction_scope": "per layer"})
    for site, direction in zip(edit.sites, directions_of(edit), strict=True):
        mean = task.directions.baseline_mean[place, site.writer.layer]
        assert abs(float(direction @ (mean / mean.norm()))) < 1e-3
    first, *others = directions_of(kernel_edit(task, {**values, "direction_scope": "global"}))
    assert all(torch.equal(first, other) for other in others)


def test_proposals_are_a_pure_function_of_the_history_and_random_at_first(task: Task) -> None:
    space = kernel_space(task)
    assert isinstance(space["direction_scope"], CategoricalDistribution)
    history: list[Trial] = []
    for index in range(10):
        values = propose(history, space, seed=0, trials=20)
        assert values == propose(history, space, seed=0, trials=20)
        if index < 6:  # 30 % do not look at the results
            assert values == propose([_worse(trial) for trial in history], space, seed=0, trials=20)
        history.append(Trial(index, values, Measured(index / 10, 1 - index / 10, 0.0), 0.0))
    assert propose(history, space, seed=0, trials=20) != propose(history, space, seed=1, trials=20)
    assert propose(history, space, seed=0, trials=20) != propose(
        [_worse(trial) for trial in history], space, seed=0, trials=20
    )


def _worse(trial: Trial) -> Trial:
    measured = Measured(1 - trial.measured.rate, 3 - trial.measured.kl_first, 0.0)
    return Trial(trial.index, trial.parameters, measured, 0.0)
