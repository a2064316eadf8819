"""Searches that trade scores of registered scorers in place of the behavior rate or the damage."""

import json
from collections.abc import Callable
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from typer.testing import CliRunner

from excise.behaviors import Behavior, Splits
from excise.cli.app import app
from excise.demo import MODEL_PATH
from excise.errors import InputError, ScorerError
from excise.evaluation import KEYS, Reference, Subject, load_scorers, registry, scorer, scorers
from excise.evaluation.keys import check_keys, locate, scores_of, value_at
from excise.evaluation.storage import TensorStore
from excise.model.generate import generate
from excise.search import Limits, Measured, SearchResult, Study, Task, Trial, choose, known_methods, search
from excise.search.along import propose, ranges
from excise.search.axes import Axes, in_unit, near_lowest, ranks
from excise.search.proposer import front_of, leaders, told
from excise.search.study import KL_CEILING, ONSET_LIMIT, limits_after
from zoo.taught import found, taught

Searching = Callable[..., SearchResult]


@pytest.fixture(scope="module")
def searching(behavior: Behavior, splits: Splits) -> Searching:
    plain = partial(search, method="mean-difference", trials=3)
    return partial(plain, taught(), behavior, splits=splits, directions=found(behavior, splits))


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_SCORERS", dict(scorers()))
    monkeypatch.setattr(registry, "_KEYS", {})


def judge(subject: Subject) -> dict[str, Any]:
    """Whether “zig a7” is not answered with a no."""
    answers = generate(subject.model, subject.prompts.target[:6], max_tokens=2)
    fine = sum(not answer.text.startswith("no") for answer in answers)
    return {"judge": {"fine": fine / 6, "said": [answer.text for answer in answers]}}


def said(result: SearchResult) -> list[tuple[object, ...]]:
    return [(trial.index, dict(trial.parameters), trial.measured) for trial in result.history]


# ---- keys


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("a", 1.0),
        ("-a", -1.0),
        ("b.c", 2.5),
        ("b.d.e", 3.0),
        ("b.d.e.f", None),
        ("b", None),
        ("text", None),
        ("bad", inf),
        ("-bad", inf),
        ("-endless", inf),
        ("nothing.at.all", None),
    ],
)
def test_a_key_leads_to_a_number(key: str, value: float | None) -> None:
    values = {"a": 1, "b": {"c": 2.5, "d.e": 3.0}, "text": "1", "bad": nan, "endless": inf}
    assert value_at(values, key) == value


@pytest.mark.parametrize("key", ["", "-", "kl_first", "kl_first.p99", "labels", "judge"])
def test_an_unknown_key_is_refused_without_a_model(key: str) -> None:
    scorer("other", keys=["one", "two.three"])(lambda subject: {})
    check_keys([*KEYS, "-top1", "one", "one.more", "two.three"])
    with pytest.raises(InputError, match="no scorer returns") as caught:
        check_keys([key])
    assert "kl_sequence.p95" in caught.value.hint
    assert "two.three" in caught.value.hint
    assert "--scorer-module" in caught.value.hint


def test_one_key_cannot_stand_for_both_axes() -> None:
    with pytest.raises(InputError, match="both"):
        Axes("rate", "rate").check()


def test_a_key_is_asked_of_who_says_so_then_of_its_name_then_of_everybody(behavior: Behavior, splits: Splits) -> None:
    asked: list[str] = []

    def register(name: str, values: dict[str, Any], **options: Any) -> None:
        def function(subject: Subject) -> dict[str, Any]:
            asked.append(name)
            return values

        scorer(name, **options)(function)

    register("first", {"x": 1, "far": {"y": 2}})
    register("x", {"x": 3})
    register("says", {"z": 4, "w": 5}, keys=["z", "w"])
    subject = Subject(taught(), behavior, splits.tune, Reference([], [], TensorStore(0), {}, 1))
    assert locate(["z", "-w", "rate"], subject) == ({"z": "says", "-w": "says"}, {"z": 4.0, "-w": -5.0})
    assert asked == ["says"]
    assert locate(["x"], subject)[0] == {"x": "x"}
    assert locate(["far.y"], subject)[0] == {"far.y": "first"}
    with pytest.raises(InputError, match="'v'") as caught:
        locate(["v"], subject)
    assert all(key in caught.value.hint for key in ("x", "far.y", "top1"))


# ---- searches


def test_a_score_decides_which_trial_wins(searching: Searching) -> None:
    plain = searching()
    by_kl = {trial.index: trial.measured.kl_sequence for trial in plain.history}

    @scorer("distance")
    def distance(subject: Subject) -> dict[str, float]:
        return {"distance": subject.reference.compare(subject.model).sequence.mean}

    farthest = searching(rate_by="-distance")
    assert plain.best.provenance["trial"] != max(by_kl, key=by_kl.__getitem__)
    assert farthest.best.provenance["trial"] == max(by_kl, key=by_kl.__getitem__)
    assert "'-distance'" in farthest.reason
    assert "2%" in farthest.reason
    for trial in farthest.history:
        assert trial.measured.scores["-distance"] == pytest.approx(-trial.measured.kl_sequence, rel=1e-4)
    point = farthest.front[0]
    assert point.scores["-distance"] == (point.tune.scores["-distance"] + point.select.scores["-distance"]) / 2
    assert set(point.edit.scores["select"]["scores"]) == {"-distance"}
    assert farthest.points[0]["scores"] == farthest.history[0].measured.scores
    assert farthest.base_scores == {"-distance": 0.0}
    assert "scores" not in plain.points[0]
    built_in = searching(rate_by="-kl_sequence.mean")
    assert built_in.best.provenance["trial"] == farthest.best.provenance["trial"]
    assert built_in.base_scores == {}


@pytest.mark.parametrize("method", known_methods())
def test_every_method_measures_what_it_is_asked_to_trade(method: str, searching: Searching) -> None:
    scorer("judge")(judge)
    result = searching(method=method, trials=2, rate_by="-judge.fine", damage_by="labels.degenerate")
    assert result.base_scores["-judge.fine"] == 0
    for trial in result.history:
        assert set(trial.measured.scores) == {"-judge.fine", "labels.degenerate"}
        assert trial.measured.screened or -1 <= trial.measured.scores["-judge.fine"] <= 0
    lefts = [point.scores["-judge.fine"] for point in result.front]
    assert lefts == sorted(lefts)


def test_a_search_with_scores_ends_alike_wherever_it_is_stopped(
    searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("excise.search.objective.favourable_count", lambda device: 2)
    calls: list[int] = []

    @scorer("judge")
    def counting(subject: Subject) -> dict[str, Any]:
        calls.append(1)
        return judge(subject)

    options: dict[str, Any] = {"method": "schedule", "trials": 5, "rate_by": "-judge.fine"}

    def stop(label: str, done: int, total: int, unit: str = "") -> None:
        if label == "search" and done == 3:
            raise KeyboardInterrupt

    whole = searching(**options)
    with pytest.raises(KeyboardInterrupt):
        searching(**options, directory=tmp_path, progress=stop)
    resumed = searching(**options, directory=tmp_path)
    assert said(resumed) == said(whole)
    assert [point.scores for point in resumed.front] == [point.scores for point in whole.front]
    calls.clear()
    again = searching(**options, directory=tmp_path)
    assert (said(again), again.reason, calls) == (said(whole), whole.reason, [])
    other = searching(**{**options, "trials": 1, "method": "mean-difference", "damage_by": "top1"}, directory=tmp_path)
    assert other.trials == 1
    assert calls


def test_a_scorer_that_fails_is_named_and_costs_the_trial_under_way_alone(
    searching: Searching, splits: Splits, tmp_path: Path
) -> None:
    scorer("judge")(judge)
    whole = searching(rate_by="-judge.fine")
    failing = iter([False, False, True])

    def once(subject: Subject) -> dict[str, Any]:
        if next(failing, False):
            raise ZeroDivisionError("no grade")
        at_tune.append(subject.prompts == splits.tune)
        return judge(subject)

    registry._SCORERS["judge"] = once
    at_tune: list[bool] = []
    with pytest.raises(ScorerError, match="'judge' failed") as caught:
        searching(rate_by="-judge.fine", directory=tmp_path)
    assert "ZeroDivisionError: no grade" in caught.value.message
    assert "test_search_scores.py, line" in caught.value.message
    assert sum(at_tune) == 2  # the base model and the first trial
    resumed = searching(rate_by="-judge.fine", directory=tmp_path)
    assert said(resumed) == said(whole)
    assert sum(at_tune) == 4
    assert taught().chat("zig a1") == "no way"


def test_an_unknown_key_ends_the_search_before_its_first_trial(searching: Searching, tmp_path: Path) -> None:
    scorer("judge")(judge)
    with pytest.raises(InputError, match=r"'judge\.wrong'") as caught:
        searching(rate_by="judge.wrong", directory=tmp_path)
    assert "judge.fine" in caught.value.hint
    with pytest.raises(InputError, match="kl_first"):
        searching(damage_by="kl_first", directory=tmp_path)


def test_what_is_no_number_counts_as_the_worst(searching: Searching) -> None:
    values = iter([0.0, nan, 0.2, 0.1])
    scorer("odd")(lambda subject: {"odd": next(values, 0.1)})
    result = searching(rate_by="odd", damage_by="-kl_sequence.mean")
    assert [trial.measured.scores["odd"] for trial in result.history] == [inf, 0.2, 0.1]
    assert result.points[0]["scores"]["odd"] is None
    assert result.best.provenance["trial"] != 0


def test_a_scorer_must_return_the_same_keys_every_time(behavior: Behavior, splits: Splits) -> None:
    subject = Subject(taught(), behavior, splits.tune, Reference([], [], TensorStore(0), {}, 1))
    scorer("fickle")(lambda subject: {"else": 1})
    with pytest.raises(ScorerError, match="'fickle' returned no number"):
        scores_of({"mine": "fickle"}, subject)
    scorer("list")(lambda subject: [1])  # type: ignore[arg-type,return-value]
    with pytest.raises(ScorerError, match="'list' returned a list"):
        scores_of({"mine": "list"}, subject)
    with pytest.raises(ScorerError, match="no scorer 'gone'"):
        scores_of({"mine": "gone"}, subject)


def test_answers_can_be_written_out(searching: Searching, behavior: Behavior, splits: Splits) -> None:
    load_scorers(["excise.evaluation.answers"])
    from excise.evaluation.answers import answers

    registry._SCORERS["answers"] = answers  # imported once per process, while registries here are each test's own
    result = searching(trials=1, damage_by="answers.degenerate", rate_by="-answers.tokens")
    assert result.base_scores == {"answers.degenerate": 0.0, "-answers.tokens": -2.0}
    assert 0 <= result.front[0].scores["answers.degenerate"] <= 1


# ---- rules


def measured(rate_score: float | None, damage_score: float | None = None, **others: Any) -> Measured:
    scores = {key: value for key, value in (("r", rate_score), ("d", damage_score)) if value is not None}
    given = {"rate": 0.5, "kl_first": 0.3, "kl_sequence": 0.3, **others}
    return Measured(**given, scores=scores, rate_by="r", damage_by=None if damage_score is None else "d")


SCORES = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=8)


@given(
    SCORES, st.sampled_from([2.0**-20, 0.5, 1.0, 1024.0]), st.integers(-64, 64), st.sampled_from([None, 0.0, 0.5, 1.0])
)
def test_the_choice_depends_on_no_scale(
    values: list[tuple[int, int]], factor: float, shift: int, dial: float | None
) -> None:
    plain = [measured(float(first), float(second)) for first, second in values]
    moved = [measured(factor * (first + shift), factor * (second + shift)) for first, second in values]
    assert choose(moved, preserve=dial).index == choose(plain, preserve=dial).index
    assert choose([*plain, measured(inf, inf)], preserve=dial).index < len(plain)


def test_a_choice_by_scores_tolerates_little_and_keeps_the_goals() -> None:
    points = [measured(100.0, 9.0, rate=0.3), measured(101.0, 5.0, rate=0.2), measured(160.0, 1.0, rate=0.0)]
    assert choose(points).index == 1
    choice = choose(points, max_rate=0.1)
    assert (choice.index, choice.satisfied) == (2, True)
    assert not choose(points, max_kl=0.01).satisfied
    assert choose([measured(inf, 1.0), measured(inf, 0.5)]).index == 1
    rate_alone = [measured(3.0, rate=0.0, kl_sequence=0.2), measured(1.0, rate=0.0), measured(2.0, rate=0.0)]
    assert choose(rate_alone).index == 1
    assert "below 0.005 nats" in choose(rate_alone).reason


def test_one_broken_model_does_not_make_all_others_equal() -> None:
    assert near_lowest([1.0, 2.0, 3.0, 1e300]) < 1.2
    assert near_lowest([1.0, inf]) == 1.0
    assert near_lowest([1.0, 1.0, 2.0], 101.0) == 3.0
    assert near_lowest([inf, inf]) == inf
    assert in_unit([2.0, 4.0, inf]) == [0.0, 1.0, inf]
    assert ranks([5.0, -2.0, 5.0, inf]) == [0.5, 0.0, 0.5, 1.0]


def test_samplers_are_told_ranks() -> None:
    space = {"x": FloatDistribution(0.0, 1.0)}
    history = [
        Trial(i, {"x": i / 3}, measured(value, kl_sequence=0.1), 0.0) for i, value in enumerate([7e9, -3.0, inf])
    ]
    assert [trial.values[0] for trial in told(history, space)] == [0.5, 0.0, 1.0]
    assert [trial.values[1] for trial in told(history, space)] == pytest.approx([-0.9957] * 3, abs=1e-3)
    both = ranges(3)
    trials = [
        Trial(index, {"along": index / 2, "strength": 1.2}, measured(value, -value), 0.0)
        for index, value in enumerate([3.0, 2.0, 1.0, 1e200])
    ]
    assert set(propose(trials, tried=4, length=3, seed=0)) == set(both)


def test_fronts_and_leaders_follow_the_scores() -> None:
    trials = [
        Trial(index, {}, measured(*values, rate=0.0), 0.0)
        for index, values in enumerate([(9.0, 1.0), (1.0, 5.0), (1.1, 2.0), (8.0, 8.0)])
    ]
    assert [trial.index for trial in front_of(trials)] == [1, 2, 0]
    assert [trial.index for trial in leaders(trials)] == [2]


def test_no_trial_is_given_up_by_what_a_score_stands_for() -> None:
    def after(**axes: Any) -> Limits:
        first = Measured(0.0, 0.1, 0.1, 50, 0.1, scores=dict.fromkeys(axes.values(), 1.0), **axes)
        return limits_after([Trial(0, {}, first, 0.0)])

    assert after(rate_by="r") == Limits(kl=KL_CEILING, onset=inf)
    assert after(damage_by="d") == Limits(kl=inf, onset=ONSET_LIMIT)
    assert after(rate_by="r", damage_by="d") == Limits(kl=inf, onset=inf)


def test_a_trial_that_is_screened_is_not_scored(behavior: Behavior, splits: Splits) -> None:
    scorer("judge")(lambda subject: pytest.fail("asked") if subject.model is not None else {})
    study = Study(None, key="k")
    study.remember("scorers", {"judge": "judge"})
    axes = Axes("judge", "-kl_sequence.mean")
    task = Task(taught(), behavior, splits, found(behavior, splits), study, axes=axes)
    from excise.edit import Edit

    screened = task.tune(Edit.project(task.model.survey, task.directions), Limits(kl=-1.0, onset=0.0))
    assert screened.screened
    assert screened.scores["judge"] == inf
    assert screened.scores["-kl_sequence.mean"] == -screened.kl_sequence


# ---- from the command line

SCORER = """
import math
from dataclasses import dataclass
from excise.evaluation import Subject, scorer

@dataclass
class Grade:
    value: float

@scorer("NAME", keys=["NAME"])
def grade(subject: Subject) -> dict[str, float]:
    value = subject.reference.compare(subject.model).sequence.median
    if value > 0 and FAILS:
        raise ValueError("out of ink")
    return {"NAME": Grade(math.sqrt(value)).value}
"""


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Any]:
    """`excise search` of the demo's model with a file of scorers."""

    def invoke(*arguments: str, name: str, fails: bool = False, source: str = SCORER) -> Any:
        file = tmp_path / f"{name}.py"
        file.write_text(source.replace("NAME", name).replace("FAILS", str(fails)), encoding="utf-8")
        fixed = ["search", str(MODEL_PATH), "--behavior", "demo:sealed", "--splits", "12,4,4,1", "--json"]
        fixed += ["--method", "mean-difference", "--trials", "2", "--max-tokens", "8", "--out", str(tmp_path / "run")]
        return CliRunner().invoke(app, [*fixed, "--scorer-module", str(file), *arguments])

    return invoke


def test_a_file_of_scorers_on_the_command_line(call: Callable[..., Any], tmp_path: Path) -> None:
    result = call("--damage-by", "-ink", "--rate-by", "kl_first.p95", name="ink")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert (data["rate_by"], data["damage_by"]) == ("kl_first.p95", "-ink")
    assert all(set(point["scores"]) == {"-ink", "kl_first.p95"} for point in data["front"])
    assert (tmp_path / "run" / "edit.safetensors").is_file()


def test_a_scorer_that_fails_on_the_command_line_keeps_what_is_finished(
    call: Callable[..., Any], tmp_path: Path
) -> None:
    result = call("--damage-by", "blot", name="blot", fails=True)
    assert result.exit_code == 1
    told = json.loads(result.stdout)["error"]
    assert told["type"] == "ScorerError"
    assert "'blot' failed in blot.py, line 14: ValueError: out of ink" in told["message"]
    assert (tmp_path / "run" / "study" / "study.db").is_file()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("--rate-by", "nib"), {"name": "quill"}, "no scorer returns a number as 'nib'"),
        ((), {"name": "broken", "source": "import nothing_like_it"}, "broken.py, line 1 cannot be imported"),
        ((), {"name": "spelt", "source": "def f(:"}, "cannot be imported: SyntaxError"),
        ((), {"name": "empty", "source": "x = 1"}, "registers no scorer"),
        (("--scorer-module", "gone.py"), {"name": "feather"}, "no file of scorers at gone.py"),
        (("--scorer-module", "gone_module"), {"name": "pen"}, "gone_module cannot be imported"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_model(
    call: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    result = call(*arguments, **options)
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "InputError"
    assert message in error["message"]
    assert error["hint"]
    assert not (tmp_path / "run").exists()
