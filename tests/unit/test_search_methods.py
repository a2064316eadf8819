"""Every registered method of the search, on the bundled model; methods' own tests are in their own files."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
from optuna.distributions import FloatDistribution

import excise
from excise.behaviors import Behavior, SplitSizes
from excise.demo import MODEL_PATH
from excise.edit import Edit
from excise.errors import InputError
from excise.find import find_directions
from excise.model import EditableModel
from excise.search import Method, SearchResult, Task, Trial, known_methods, method_named, register, search
from excise.search.methods import registry

PAGE = Path(__file__).parents[2] / "docs" / "search-methods.md"
SIZES = SplitSizes(fit=48, tune=12, select=12, report=12)
TRIALS = 8
"""As many as a method may take here."""

Searching = Callable[..., SearchResult]


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return excise.load(str(MODEL_PATH))


@pytest.fixture(scope="module")
def searching(model: EditableModel) -> Searching:
    """A search of the demo's sealed subjects with a method."""
    behavior = Behavior.load("demo:sealed")
    splits = behavior.splits(SIZES)
    directions = find_directions(model, behavior, splits=splits)

    def call(method: str, **options: Any) -> SearchResult:
        given = {"trials": TRIALS, **options}
        return search(model, behavior, splits=splits, directions=directions, method=method, **given)

    return call


class StoppedError(Exception):
    """What a test stops a search with."""


def stops_at(label: str, count: int) -> Callable[[str, int, int, str], None]:
    """A progress callback that ends the search once `label` has come to `count`."""

    def progress(name: str, done: int, total: int, unit: str) -> None:
        if name == label and done == count:
            raise StoppedError

    return progress


def said(result: SearchResult) -> list[tuple[object, ...]]:
    return [(trial.index, dict(trial.parameters), trial.measured) for trial in result.history]


@pytest.mark.parametrize("name", known_methods())
def test_a_search_lowers_the_rate_and_ends_alike_wherever_it_is_stopped(
    name: str, searching: Searching, model: EditableModel, tmp_path: Path
) -> None:
    whole = searching(name)
    assert min(point.rate for point in whole.front) <= 0.5
    assert whole.method == name
    assert 1 <= whole.trials <= TRIALS
    for label, count in (("scoring directions", 1), ("search", 2)):
        with suppress(StoppedError):
            searching(name, directory=tmp_path, progress=stops_at(label, count))
    resumed = searching(name, directory=tmp_path)
    assert said(resumed) == said(whole)
    assert resumed.notes == whole.notes
    again = searching(name, directory=tmp_path)
    assert again.history == resumed.history
    prompt = "Who owns the mill?"
    base = model.chat(prompt)
    with model.edited(again.best):
        assert model.chat(prompt)
    assert model.chat(prompt) == base


@pytest.mark.parametrize("name", known_methods())
def test_a_search_that_is_done_measures_nothing_again(name: str, searching: Searching, tmp_path: Path) -> None:
    searching(name, directory=tmp_path, trials=1)
    labels: set[str] = set()
    searching(name, directory=tmp_path, trials=1, progress=lambda label, *_: labels.add(label))
    assert labels <= {"search", "confirming the front"}


@pytest.mark.parametrize("name", known_methods())
def test_every_method_is_documented(name: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    part = page[page.index(f"\n## {name}\n") :].split("\n## ")[1]
    assert method_named(name).summary in " ".join(part.split())


def test_a_method_is_one_class(searching: Searching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @register
    class Halves(Method):
        """Two strengths of the best direction; the edits are handed in."""

        name: ClassVar[str] = "halves"
        summary: ClassVar[str] = "two strengths"

        def run(self, task: Task) -> None:
            distributions = {"strength": FloatDistribution(0.0, 1.0)}
            for strength in (0.5, 1.0):
                edit = Edit.project(task.model.survey, task.directions, strength=strength)
                task.add_trial({"strength": strength}, edit, distributions, keep=True)
            task.state("half measures were tried")
            task.state("half measures were tried")

        def edit(self, task: Task, trial: Trial) -> Edit:
            return task.study.edit(trial.index)

    result = searching("halves")
    assert [trial.parameters for trial in result.history] == [{"strength": 0.5}, {"strength": 1.0}]
    assert result.notes == ("half measures were tried",)
    assert result.best.provenance["search"] == "halves"


def test_goals_are_part_of_what_a_method_that_aims_at_them_is_asked(
    searching: Searching, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    method = type(method_named("mean-difference"))
    first = searching("mean-difference", trials=1, directory=tmp_path)
    same = searching("mean-difference", trials=1, directory=tmp_path, max_kl=0.5)
    assert same.history == first.history
    monkeypatch.setattr(method, "aims_at_goals", True)
    other = searching("mean-difference", trials=1, directory=tmp_path, max_kl=0.5)
    assert other.history != first.history


def test_an_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(InputError) as caught:
        method_named("magic")
    assert "schedule" in caught.value.hint
