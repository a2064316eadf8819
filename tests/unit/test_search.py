"""The whole search on a tiny model that was taught, in seconds, to say no to one kind of prompt."""

from functools import partial
from pathlib import Path

import pytest
import torch

import excise
from excise.behaviors import Behavior, Splits
from excise.directions import Directions
from excise.errors import InputError
from excise.find import find_directions
from excise.model import EditableModel
from excise.search import BehaviorObjective, Limits, SearchResult, Space, search
from zoo.taught import taught

TRIALS = 16


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return taught()


@pytest.fixture(scope="module")
def result(
    model: EditableModel,
    behavior: Behavior,
    splits: Splits,
    directions: Directions,
    tmp_path_factory: pytest.TempPathFactory,
) -> SearchResult:
    folder = tmp_path_factory.mktemp("study")
    first = search(
        model, behavior, splits=splits, directions=directions, trials=TRIALS, method="schedule", directory=folder
    )
    again = search(
        model, behavior, splits=splits, directions=directions, trials=TRIALS, method="schedule", directory=folder
    )
    assert [trial.seconds for trial in again.history] == [trial.seconds for trial in first.history]
    assert [point.trial for point in again.front] == [point.trial for point in first.front]
    return again


def test_the_behavior_was_learned_and_its_directions_separate(
    model: EditableModel, directions: Directions, splits: Splits
) -> None:
    assert {model.chat(prompt) for prompt in splits.report.target} == {"no way"}
    assert "no way" not in {model.chat(prompt) for prompt in splits.report.baseline}
    assert float(directions.separability.auc[directions.best]) > 0.99
    assert directions.best[1] < 0.8 * 4


def test_finding_is_deterministic_and_methods_share_their_activations(
    model: EditableModel, behavior: Behavior, splits: Splits, directions: Directions
) -> None:
    projected = find_directions(model, behavior, splits=splits, method="projected", batch_size=5)
    torch.testing.assert_close(projected.vectors, directions.with_method("projected").vectors, atol=2e-3, rtol=0)


def test_the_best_edit_removes_the_behavior(
    model: EditableModel, behavior: Behavior, splits: Splits, result: SearchResult
) -> None:
    scores = excise.evaluate(model, behavior, edit=result.best, split="report", splits=splits)
    assert scores.rate.value <= 0.1
    plain = result.history[0].measured
    assert result.satisfied
    assert scores.divergence.sequence.mean <= max(plain.kl_sequence, 0.05)


def test_the_front_is_measured_on_prompts_the_search_never_saw(result: SearchResult, splits: Splits) -> None:
    rates = [point.rate for point in result.front]
    assert rates == sorted(rates)
    assert 1 <= len(result.front) <= 6
    for point in result.front:
        assert point.select.prompts == len(splits.select.target)
        assert not point.tune.screened
        assert set(point.edit.scores) == {"tune", "select"}
        assert point.edit.provenance["splits"]["sha256"] == splits.digest()
        assert point.edit.provenance["search"] == result.method == "schedule"
        assert point.edit.provenance["parameters"] == dict(point.parameters)


def test_every_trial_is_a_point(result: SearchResult) -> None:
    assert result.trials == len(result.points) == TRIALS
    assert result.screened == sum(point["screened"] for point in result.points)
    assert sum(point["on_front"] for point in result.points) == len(result.front)


def test_a_goal_that_cannot_be_met_is_said_to_be_missed(
    model: EditableModel, behavior: Behavior, splits: Splits, directions: Directions
) -> None:
    result = search(model, behavior, splits=splits, directions=directions, trials=2, max_kl=1e-9)
    assert not result.satisfied
    assert "1e-09" in result.reason


def test_many_edits_are_measured_as_one_at_a_time(
    model: EditableModel, behavior: Behavior, splits: Splits, directions: Directions, result: SearchResult
) -> None:
    tune = BehaviorObjective.measure_base(model, behavior, splits.tune)
    assert tune.at_once == 1
    space = Space(model.survey, directions)
    edits = [space.edit(trial.parameters) for trial in result.history]
    assert len(model.sharing(edits)) == 1
    limits = Limits(kl=sorted(trial.measured.kl_sequence for trial in result.history)[TRIALS // 2], onset=0.8)
    for many, one in (
        (tune.many(edits, limits), partial(tune, limits=limits)),
        (tune.prefill_many(edits), tune.prefill),
    ):
        alone = [one(edit) for edit in edits]
        for each, expected in zip(many, alone, strict=True):
            assert (each.rate, each.estimate, each.reason) == (expected.rate, expected.estimate, expected.reason)
            assert each.kl_sequence == pytest.approx(expected.kl_sequence, rel=1e-3, abs=1e-6)
            assert each.kl_first == pytest.approx(expected.kl_first, rel=1e-3, abs=1e-6)
    assert {each.screened for each in tune.many(edits, limits)} == {True, False}


def test_a_search_in_batches_removes_the_behavior_and_resumes(
    model: EditableModel,
    behavior: Behavior,
    splits: Splits,
    directions: Directions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("excise.search.objective.favourable_count", lambda device: 4)

    def stop(label: str, done: int, total: int, unit: str = "") -> None:
        if label == "search" and done == 6:
            raise KeyboardInterrupt

    find = partial(search, model, behavior, splits=splits, directions=directions, trials=TRIALS, method="schedule")
    with pytest.raises(KeyboardInterrupt):
        find(directory=tmp_path, progress=stop)
    whole, resumed = find(), find(directory=tmp_path)
    assert [trial.parameters for trial in resumed.history] == [trial.parameters for trial in whole.history]
    assert [trial.measured for trial in resumed.history] == [trial.measured for trial in whole.history]
    assert [point.select for point in resumed.front] == [point.select for point in whole.front]
    assert excise.evaluate(model, behavior, edit=resumed.best, split="report", splits=splits).rate.value <= 0.1


def test_the_model_is_left_as_it_was(model: EditableModel, result: SearchResult) -> None:
    assert model.chat("zig a1") == "no way"


def test_unusable_settings_are_refused(model: EditableModel, behavior: Behavior, splits: Splits) -> None:
    with pytest.raises(InputError, match="budget"):
        search(model, behavior, splits=splits, budget="huge")
    with pytest.raises(InputError, match="search method 'guess'"):
        search(model, behavior, splits=splits, method="guess")
    with pytest.raises(InputError, match="0 trials"):
        search(model, behavior, splits=splits, trials=0)


def test_an_edit_of_the_front_survives_its_file(result: SearchResult, tmp_path: Path) -> None:
    result.best.save(tmp_path / "edit.safetensors")
    loaded = excise.Edit.load(tmp_path / "edit.safetensors")
    assert loaded.scores == result.best.scores
    assert loaded.provenance == result.best.provenance


def test_the_package_is_callable() -> None:
    import sys

    package = sys.modules["excise.search"]
    with pytest.raises(TypeError):
        package()
    assert callable(excise.search)
    assert package.search is search
