"""Every registered method of the search, on one small task; methods' own tests are in their own files."""

from pathlib import Path
from typing import ClassVar

import pytest
from optuna.distributions import FloatDistribution

from excise.edit import Edit
from excise.errors import InputError
from excise.model import EditableModel
from excise.search import Measured, Method, Task, Trial, known_methods, method_named, register, search
from excise.search.methods import registry
from zoo.taught import SIZES, found, refusing, taught

PAGE = Path(__file__).parents[2] / "docs" / "search-methods.md"
TRIALS = 16
"""As many as a method may take here."""


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return taught()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    behavior = refusing(tmp_path_factory.mktemp("prompts"))
    splits = behavior.splits(SIZES)
    return {"behavior": behavior, "splits": splits, "directions": found(behavior, splits)}


@pytest.mark.parametrize("name", known_methods())
def test_a_search_is_deterministic_resumes_and_lowers_the_rate(
    name: str, model: EditableModel, given: dict[str, object], tmp_path: Path
) -> None:
    whole = search(model, **given, method=name, trials=TRIALS)  # type: ignore[arg-type]
    stored = search(model, **given, method=name, trials=TRIALS, directory=tmp_path)  # type: ignore[arg-type]
    again = search(model, **given, method=name, trials=TRIALS, directory=tmp_path)  # type: ignore[arg-type]
    assert [(trial.parameters, trial.measured) for trial in whole.history] == [
        (trial.parameters, trial.measured) for trial in stored.history
    ]
    assert again.history == stored.history
    assert again.notes == stored.notes == whole.notes
    assert again.method == name
    assert min(point.rate for point in again.front) < 0.5
    assert {site.writer.parameter for site in again.best.sites}
    with model.edited(again.best):
        assert model.chat("zig a1")
    assert model.chat("zig a1") == "no way"


@pytest.mark.parametrize("name", known_methods())
def test_every_method_is_documented(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    part = page[page.index(f"\n## {name}\n") :].split("\n## ")[1]
    assert method_named(name).summary in " ".join(part.split())


def test_a_method_is_one_class(model: EditableModel, given: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @register
    class Halves(Method):
        """Two strengths of the best direction; the edits are handed in."""

        name: ClassVar[str] = "halves"
        summary: ClassVar[str] = "two strengths"

        def run(self, task: Task) -> None:
            for index in range(len(task.study.trials), 2):
                strength = (index + 1) / 2
                edit = Edit.project(task.model.survey, task.directions, strength=strength)
                trial = Trial(index, {"strength": strength}, task.tune(edit), 0.0)
                task.study.append(trial, {"strength": FloatDistribution(0.0, 1.0)}, edit)
            task.state("half measures were tried")
            task.state("half measures were tried")

        def edit(self, task: Task, trial: Trial) -> Edit:
            return task.study.edit(trial.index)

    result = search(model, **given, method="halves")  # type: ignore[arg-type]
    assert [trial.parameters for trial in result.history] == [{"strength": 0.5}, {"strength": 1.0}]
    assert result.notes == ("half measures were tried",)
    assert isinstance(result.history[0].measured, Measured)
    assert result.best.provenance["search"] == "halves"


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        method_named("magic")
    assert "schedule" in caught.value.hint
