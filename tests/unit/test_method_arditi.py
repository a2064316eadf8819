"""The selection of Arditi et al.: its rules, its candidates, and what it says when none is left."""

from dataclasses import replace

import pytest
import torch

from excise.behaviors import Behavior, Splits
from excise.directions import Directions
from excise.search import Study, Task, search
from excise.search.methods.arditi import (
    Candidate,
    onset_on_baseline,
    select_candidate,
)
from excise.search.positions import inside_instruction, positions_after_instruction
from zoo.taught import refusing, taught


@pytest.fixture(scope="module")
def task(behavior: Behavior, splits: Splits, directions: Directions) -> Task:
    return Task(taught(), behavior, splits, directions, Study(None, key="k"))


def candidate(layer: int, bypass: float, induce: float, kl: float) -> Candidate:
    return Candidate("-1", layer, bypass, induce, kl)


def test_the_best_bypass_of_those_that_induce_at_a_small_kl_is_taken() -> None:
    good = candidate(0, -3.0, 1.0, 0.05)
    others = [candidate(1, -9.0, 1.0, 0.2), candidate(2, -9.0, -1.0, 0.05), candidate(3, -2.0, 5.0, 0.0)]
    assert select_candidate([*others, good]) == (good, "")


def test_where_none_is_left_conditions_are_dropped_in_order_and_said() -> None:
    silent, harmful = candidate(2, -9.0, -1.0, 0.05), candidate(1, -20.0, 1.0, 0.2)
    chosen, said = select_candidate([harmful, silent])
    assert chosen == silent
    assert "induces" in said
    chosen, said = select_candidate([candidate(0, -30.0, 1.0, 0.9), harmful])
    assert chosen == harmful
    assert "smallest KL" in said


def test_a_score_that_is_no_number_drops_a_candidate() -> None:
    good = candidate(0, 3.0, 1.0, 0.05)
    assert select_candidate([candidate(1, float("nan"), 1.0, 0.0), good])[0] == good


def test_positions_are_those_of_the_template(task: Task) -> None:
    names = positions_after_instruction(task)
    assert inside_instruction(task, [*names, "-99", "+1", "response"]) == {"-99"}
    rows = task.model.template.encode(["zig a1", "zag b2"])
    assert names == tuple(f"-{index}" for index in range(1, len(names) + 1))
    assert rows[0][-len(names) :] == rows[1][-len(names) :]
    assert rows[0][-len(names) - 1] != rows[1][-len(names) - 1]


def test_on_baseline_prompts_the_place_is_that_of_most_target_prompts(task: Task) -> None:
    assert task.tune.onset is not None
    place = onset_on_baseline(task.tune, task.tune.onset)
    assert place.rows == task.tune.reference.prompts  # "no way" begins with the first token
    assert place.tokens == task.tune.onset.tokens
    late = replace(task.tune.onset, rows=tuple((*row, 7) for row in task.tune.onset.rows))
    for row, prompt in zip(onset_on_baseline(task.tune, late).rows, task.tune.reference.prompts, strict=True):
        assert len(row) == len(prompt) + 1


def test_the_edit_covers_the_embeddings_and_removes_its_direction(
    behavior: Behavior, splits: Splits, directions: Directions
) -> None:
    model = taught()
    result = search(model, behavior, splits=splits, directions=directions, method="arditi")
    assert result.trials == 1
    assert {site.writer.parameter for site in result.best.sites} == {
        writer.parameter for writer in model.survey.writers
    }
    (change,) = result.best.sites[0].changes
    direction = torch.as_tensor(vars(change)["directions"][0])
    with model.edited(result.best):
        assert model.exposure(direction) < 1e-4


def test_a_model_that_does_not_show_the_behavior_is_said_to_leave_no_choice(
    splits: Splits, directions: Directions, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("other")
    refusing(folder)
    never = Behavior.from_files(folder / "zig.txt", folder / "zag.txt", markers=["never said"], max_tokens=8)
    result = search(taught(), never, splits=splits, directions=directions, method="arditi")
    assert result.trials == 1
    assert "does not show the behavior" in result.notes[0]
