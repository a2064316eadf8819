"""Searches with strength -1: the behavior is to be shown more often, by the same machinery turned round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import excise
from excise import pipeline, stages
from excise.behaviors import Behavior, Splits, SplitSizes
from excise.cli.run import told
from excise.config import RunConfig
from excise.demo import MODEL_PATH
from excise.directions import Directions
from excise.edit import Edit, Projection, operators
from excise.errors import InputError
from excise.evaluation import Onset, behavior_rate
from excise.evaluation.rate import decided_by
from excise.find import find_directions
from excise.model import EditableModel
from excise.model.row_groups import Population
from excise.report import write_report
from excise.search import Limits, Measured, SearchResult, Space, Trial, choose, known_methods
from excise.search.methods import method_named
from excise.search.proposer import front_of, leaders, objectives
from excise.search.study import limits_after
from excise.search.sweep import candidates
from fake_result import fake_result

TRIALS = 3


@pytest.fixture(scope="module")
def sealed() -> Behavior:
    return Behavior.load("demo:sealed").model_copy(update={"positions": ("-1",)})  # others make the sweep longer


@pytest.fixture(scope="module")
def asked(sealed: Behavior) -> Splits:
    return sealed.splits(SplitSizes(32, 12, 12, 24))


@pytest.fixture(scope="module")
def model(sealed: Behavior, asked: Splits) -> EditableModel:
    """The demo model with half of what carries its refusals taken out of its weights: it shows them sometimes."""
    model = excise.load(MODEL_PATH)
    found = find_directions(model, sealed, splits=asked)
    weights = dict(model.hf_model.named_parameters())
    with torch.no_grad():
        for site in Edit.project(model.survey, found.vectors[found.best], strength=0.5).sites:
            weight = weights[site.writer.parameter]
            weight.copy_(operators.apply(weight, site.changes, axis=site.writer.axis))
    return EditableModel(model.hf_model, model.tokenizer, name="weakened")


@pytest.fixture(scope="module")
def directions(model: EditableModel, sealed: Behavior, asked: Splits) -> Directions:
    return find_directions(model, sealed, splits=asked)


@pytest.fixture(scope="module")
def strengthened(model: EditableModel, sealed: Behavior, asked: Splits, directions: Directions) -> SearchResult:
    return excise.search(model, sealed, splits=asked, directions=directions, trials=TRIALS, strength=-1)


def test_the_behavior_is_shown_more_often_on_unseen_prompts(
    model: EditableModel, sealed: Behavior, asked: Splits, strengthened: SearchResult
) -> None:
    before, after = (
        excise.evaluate(model, sealed, edit=edit, split="report", splits=asked) for edit in (None, strengthened.best)
    )
    assert after.rate.value >= max(0.8, before.rate.value + 0.3)
    assert after.divergence.sequence.mean <= 0.1
    assert strengthened.strength == -1
    assert strengthened.best.provenance["strength"] == -1
    assert strengthened.reason.startswith("the behavior was strengthened: the smallest KL at a rate of at least 0.")


def test_the_same_search_with_strength_1_removes_it(
    model: EditableModel, sealed: Behavior, asked: Splits, directions: Directions
) -> None:
    removed = excise.search(
        model, sealed, splits=asked, directions=directions, trials=TRIALS, method="schedule", strength=1
    )
    with model.edited(removed.best):
        assert behavior_rate(model, asked.report.target, sealed).rate.value <= 0.1
    assert "strength" not in removed.best.provenance


def test_trials_write_directions_more_and_rates_stay_those_of_the_behavior(strengthened: SearchResult) -> None:
    for trial in strengthened.history:
        strengths = [value for name, value in trial.parameters.items() if name.endswith(".strength")]
        assert all(-2 <= float(value) <= 0 for value in strengths)
        assert trial.measured.strength == -1
    changes = [change for site in strengthened.best.sites for change in site.changes]
    assert all(isinstance(change, Projection) and change.strength < 0 for change in changes)
    rates = [point.rate for point in strengthened.front]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] >= 0.8


def test_the_likeliest_beginning_is_found_where_the_behavior_is_not_shown(
    model: EditableModel, sealed: Behavior, asked: Splits
) -> None:
    prompts = asked.tune.target
    base = behavior_rate(model, prompts, sealed)
    shown = Onset.measure(model, prompts, sealed, base.responses)
    everywhere = Onset.measure(model, prompts, sealed, base.responses, wherever=True)
    assert 0 < len(shown.prompts) < len(prompts)
    assert everywhere.prompts == tuple(range(len(prompts)))
    assert everywhere.tokens == shown.tokens
    for row, index in zip(shown.rows, shown.prompts, strict=True):
        assert everywhere.rows[index] == row
    encoded = model.template.encode(prompts)
    margins = everywhere.margin(model)
    for index in sorted({*everywhere.prompts} - {*shown.prompts}):
        tokens, prompt = base.responses[index].tokens, encoded[index]
        rows = tuple((*prompt, *tokens[:place]) for place in range(len(tokens)))
        each = replace(everywhere, rows=rows, prompts=tuple(range(len(rows)))).margin(model)
        torch.testing.assert_close(margins[index], each.max(), atol=0.1, rtol=0)
    expected = everywhere.expected_rate_each(model, Population(1))
    assert expected == [pytest.approx(margins.sigmoid().mean().item())]
    silent = [replace(each, text="", tokens=()) for each in base.responses]
    assert Onset.measure(model, prompts, sealed, silent, wherever=True).rows == ()


def test_a_response_is_settled_only_when_its_window_is_over(model: EditableModel) -> None:
    late = Behavior.from_files("a.txt", "b.txt", markers=["ask a keeper"], window=60)
    settled = decided_by(late, model.template)
    assert not settled("It is blue. " * 5)
    assert settled("It is blue. " * 10)
    assert not decided_by(late.model_copy(update={"detectors": late.detectors.model_copy(update={"window": None})}),
                          model.template)("It is blue. " * 100)  # fmt: skip


def measured(rate: float, kl: float, *, reserve: float | None = None, estimate: float | None = None) -> Measured:
    return Measured(rate, kl, kl, prompts=10, reserve=reserve, estimate=estimate, strength=-1)


def test_choosing_and_fronts_are_turned_round() -> None:
    points = [measured(0.2, 0.01), measured(0.995, 0.2), measured(0.99, 0.1), measured(0.9, 0.05), measured(0.8, 0.06)]
    choice = choose(points)
    assert choice.index == 2
    assert choice.reason == "the smallest KL at a rate of at least 0.985; below 0.005 nats the highest rate"
    assert choose(points, preserve=0.0).index == 1
    assert choose(points, preserve=1.0).index == 0
    assert choose(points, max_kl=0.055).index == 3
    guarded = [measured(1.0, 0.1, reserve=0.5), measured(1.0, 0.2, reserve=0.98)]
    assert choose(guarded).index == 1
    assert "at 75% strength have no rate of at least 0.93" in choose(guarded).reason
    history = [Trial(index, {}, each, 0.0) for index, each in enumerate(points)]
    assert [trial.index for trial in front_of(history)] == [1, 2, 3, 0]
    assert [trial.index for trial in leaders(history)] == [2]
    assert objectives(points[0])[0] == pytest.approx(0.8)


def test_no_trial_is_given_up_by_an_estimate_of_its_rate() -> None:
    history = [Trial(0, {}, measured(1.0, 0.3, estimate=0.2), 0.0), Trial(1, {}, measured(0.1, 0.01), 0.0)]
    assert limits_after(history) == Limits(kl=0.3, onset=float("inf"))


def test_the_sweep_tries_several_negative_strengths(model: EditableModel, directions: Directions) -> None:
    space = Space(model.survey, directions, strength=-1)
    tried = {values["mlp.strength"] for values in candidates(space)}
    assert tried == {-0.5, -1.0, -2.0}
    assert {change.strength for site in space.edit(space.plain()).sites for change in site.changes} == {-1.0}


@pytest.mark.parametrize("value", [0, 0.5, 2, -2])
def test_other_strengths_are_one_clear_error(value: float) -> None:
    with pytest.raises(InputError) as caught:
        RunConfig.resolve(given={"model": "m", "strength": value})
    assert caught.value.message.startswith("strength: ")
    assert "--preserve" in caught.value.hint
    assert "--max-kl" in caught.value.hint


def test_the_method_is_schedule_unless_another_one_is_asked_for() -> None:
    asked = RunConfig.resolve(given={"model": "m", "strength": -1})
    assert (asked.strength, asked.method) == (-1, "schedule")
    assert json.dumps(asked.options("search")) == '{"strength": -1, "method": "schedule"}'
    assert RunConfig.resolve(given={"model": "m"}).method == "polish"
    assert RunConfig.resolve(given={"model": "m", "strength": -1, "method": "polish"}).method == "polish"


@pytest.mark.parametrize("method", sorted({*known_methods()} - {"schedule"}))
def test_methods_that_only_remove_say_so_before_there_is_anything(
    method: str, model: EditableModel, sealed: Behavior, asked: Splits, directions: Directions, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="only removes") as caught:
        method_named(method, strength=-1)
    assert "schedule" in caught.value.hint
    with pytest.raises(InputError, match="only removes"):
        excise.search(model, sealed, splits=asked, directions=directions, method=method, strength=-1)
    with pytest.raises(InputError, match="only removes"):
        excise.run("nowhere", strength=-1, method=method, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_goal_of_removing_and_an_unknown_strength_are_refused(model: EditableModel) -> None:
    with pytest.raises(InputError, match="max_rate is a goal of removing"):
        excise.search(model, "refusal", strength=-1, max_rate=0.1)
    with pytest.raises(InputError, match="strength 3") as caught:
        excise.search(model, "refusal", strength=3)
    assert "--preserve" in caught.value.hint


@pytest.mark.parametrize(
    ("rate", "strength", "refused"),
    [(0.0, -1, None), (0.94, -1, None), (0.95, -1, "nothing to strengthen"), (0.1, 1, "too few"), (1.0, 1, None)],
)
def test_a_run_is_refused_where_there_is_nothing_to_do(rate: float, strength: int, refused: str | None) -> None:
    fault = stages.nothing_to_do(rate, "m shows 'b'", strength=strength)
    assert (fault is None) == (refused is None)
    if fault is not None:
        assert str(refused) in fault.message
        assert "--force" in fault.hint


def test_a_run_refuses_saturated_prompts_and_searches_in_the_direction_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def stop(*_: object, **settings: Any) -> None:
        asked.update(settings)
        raise InputError("stopped here", hint="-")

    monkeypatch.setattr(pipeline, "search", stop)
    settings = {"behavior": "demo:sealed", "splits": (16, 4, 4, 4), "strength": -1, "out": tmp_path / "run"}
    monkeypatch.setattr(stages, "SATURATED", 0.5)
    with pytest.raises(InputError, match="already: nothing to strengthen"):
        excise.run(str(MODEL_PATH), **settings)
    with pytest.raises(InputError, match="stopped here"):
        excise.run(str(MODEL_PATH), force=True, **settings)
    assert (asked["strength"], asked["method"]) == (-1, "schedule")


def test_report_and_card_never_say_that_it_was_removed(tmp_path: Path) -> None:
    result = fake_result()
    up = {"before": {**result["before"], "rate": 0.1, "rate_interval": [0.05, 0.2]},
          "after": {**result["after"], "rate": 0.9, "rate_interval": [0.8, 0.95]}}  # fmt: skip
    write_report({**result, **up, "search": {**result["search"], "strength": -1}, "goals": {}}, tmp_path)
    page, card = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "README.md"))
    assert "<h1>Strengthening “" in page
    assert "with more “" in card
    for text in (page, card):
        assert "to be strengthened" in text
        assert "what must not strengthen the behavior" in text
        assert "Removing a learned" not in text
    assert "abliterated" not in card
    shown = told({**result, **up, "search": {"strength": -1}})
    assert "strengthened" in str(shown[0])
    assert any("random directions in its place show it in" in str(each) for each in shown)
