"""Prompts where the behavior must stay: measured apart, compared, a goal, and part of what a search must not change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from excise import Behavior, Edit, evaluate
from excise.behaviors import Prompt, PromptSet, Splits
from excise.behaviors.measures import Label
from excise.cli import app as cli
from excise.cli import run as run_command
from excise.cli import session
from excise.config import RunConfig
from excise.directions import Directions
from excise.evaluation import Answers, Reference, labelling, rate
from excise.evaluation.keeping import compare_kept
from excise.find import find_directions
from excise.progress import silent
from excise.report import html
from excise.report.record import Record
from excise.runs import RunDirectory
from excise.search.lessons import learn
from excise.search.objective import BehaviorObjective
from excise.stages import Job
from excise.validation import validate
from fake_result import fake_result
from zoo.taught import prompts, taught


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXCISE_CACHE", raising=False)


@pytest.fixture(scope="module")
def keeping(splits: Splits) -> Splits:
    """Some of the prompts that are refused, which are in no other split, are to be refused in future, too."""
    taken = {prompt for name in ("fit", "tune", "select", "report") for prompt in splits[name].target}
    free = iter(prompt for prompt in prompts("zig") if prompt not in taken)
    sets = {name: replace(splits[name], keep=tuple(next(free) for _ in range(8))) for name in ("tune", "report")}
    return replace(splits, **sets)


@pytest.fixture(scope="module")
def strong(behavior: Behavior, splits: Splits) -> Edit:
    """The plain projection: takes the behavior away wherever it is."""
    found: Directions = find_directions(taught(), behavior, splits=splits)
    return Edit.project(taught().survey, found.vectors[found.best], strength=1.5)


def verdicts(shown: int, total: int = 20) -> Mapping[str, list[Label]]:
    return {"markers": ["behavior"] * shown + ["comply"] * (total - shown)}


@pytest.mark.parametrize(
    ("after", "holds", "said"),
    [(20, True, "is kept"), (19, True, "is kept"), (18, None, "chance"), (10, False, "lost")],
)
def test_a_fall_is_judged_by_the_goal_and_by_chance(after: int, holds: bool | None, said: str) -> None:
    found = compare_kept(verdicts(20), verdicts(after))
    assert found["holds"] is holds
    assert said in found["note"]
    assert f"shown on {after / 20:.0%} of 20 prompts where it must stay, 100% before" in found["note"]
    assert found["labellers"]["markers"]["only_first"] == 20 - after
    assert compare_kept(verdicts(20), verdicts(after), most_fall=0.6)["holds"] is True


def test_a_rise_is_no_loss_and_nothing_to_keep_is_no_verdict() -> None:
    assert compare_kept(verdicts(10), verdicts(20))["holds"] is True
    assert compare_kept({}, {}) == {}


def test_what_must_not_change_is_both_sides() -> None:
    few = PromptSet(("t",), ("a", "b", "c"), ("x",))
    assert few.unchanged == ("a", "b", "c", "x")
    assert few.mixed == ("a", "x", "b", "c")
    assert PromptSet(("t",), ("a",), ("x", "y")).mixed == ("a", "x", "y")
    assert PromptSet(("t",), ("a", "b")).mixed == PromptSet(("t",), ("a", "b")).unchanged == ("a", "b")


def test_the_search_counts_a_loss_of_what_is_kept_as_damage(behavior: Behavior, keeping: Splits, strong: Edit) -> None:
    model, without = taught(), replace(keeping.tune, keep=())
    plain, aware = (
        BehaviorObjective.measure_base(model, behavior, some, screening=False) for some in (without, keeping.tune)
    )
    assert aware(strong).rate == plain(strong).rate <= 0.5
    lost = Reference.measure(model, keeping.tune.keep, behavior).compare_many(model, [strong])[0]
    sizes = len(keeping.tune.baseline), len(keeping.tune.keep)
    assert lost.first.mean > 0.1
    weighed = (sizes[0] * plain(strong).kl_first + sizes[1] * lost.first.mean) / sum(sizes)
    assert aware(strong).kl_first == pytest.approx(weighed, rel=1e-3)
    # what scorers see is the baseline alone, so that their figures are those of a report
    assert len(aware.reference.prompts) == len(keeping.tune.unchanged)
    assert len(aware._subject.reference.prompts) == len(keeping.tune.baseline)
    few = aware.sample(targets=4, baselines=3, tokens=2)
    assert (few.prompts.baseline, few.prompts.keep) == (keeping.tune.baseline[:3], keeping.tune.keep[:3])
    assert len(few.reference.prompts) == 6


def test_lessons_hold_what_is_kept_among_the_first(behavior: Behavior, keeping: Splits) -> None:
    lessons = learn(taught(), behavior, keeping.tune)
    rows = taught().template.encode(keeping.tune.mixed)
    assert [list(each.prompt) for each in lessons.baseline] == rows
    assert "no way" in lessons.reference.responses[1].text
    assert len(lessons.target) == len(keeping.tune.target)


def validated(out: Path, behavior: Behavior, splits: Splits, edit: Edit, **given: Any) -> dict[str, Any]:
    config = RunConfig(model="m", behavior="zig", out=out, report_tokens=16, **given)
    with RunDirectory.open(out, config=config.identity()) as directory:
        return validate(Job(config, behavior, splits, taught(), directory, silent), edit)


def test_the_report_measures_it_apart(behavior: Behavior, keeping: Splits, strong: Edit, tmp_path: Path) -> None:
    found = validated(tmp_path / "run", behavior, keeping, strong)
    kept = found["comparison"]["keep"]
    assert found["before"]["keep_rate"] == 1.0
    assert found["after"]["keep_rate"] == kept["labellers"]["markers"]["second_rate"] < 0.5
    assert found["after"]["keep_labels"]["behavior"] == 8 * found["after"]["keep_rate"]
    assert kept["holds"] is False
    assert "keep_rate" not in found["controls"]["no_op"]
    without = replace(keeping, report=replace(keeping.report, keep=()))
    plain = validated(tmp_path / "plain", behavior, without, strong)
    assert plain["after"]["kl_first"] == found["after"]["kl_first"]
    assert ("keep" in plain["comparison"], "keep_rate" in plain["after"]) == (False, False)
    rows = [json.loads(line) for line in next((tmp_path / "run").glob("stages/report-*/responses.jsonl")).open()]
    rows = [row for row in rows if row["side"] == "keep"]
    assert [row["prompt"] for row in rows] == list(keeping.report.keep)
    assert all(row["measured"]["before"]["labels"] == {"markers": "behavior"} for row in rows)
    shown = [row["measured"]["after"]["labels"]["markers"] == "behavior" for row in rows]
    assert sum(shown) == 8 * found["after"]["keep_rate"]
    lenient = validated(tmp_path / "lenient", behavior, keeping, strong, max_keep_fall=1.0)
    assert lenient["comparison"]["keep"]["holds"] is True


def test_a_loss_is_a_goal_that_was_missed() -> None:
    result = {"after": {"rate": 0.0, "kl_first": {"mean": 0.0}}, "leak": 0.0, "leak_tolerance": 1e-4}
    lost, kept = compare_kept(verdicts(20), verdicts(10)), compare_kept(verdicts(20), verdicts(20))
    config = RunConfig(model="m")
    assert run_command.missed({**result, "comparison": {"keep": lost}}, config) == (lost["note"],)
    assert run_command.missed({**result, "comparison": {"keep": kept}}, config) == ()
    thinking = {**result, "thinking": {"comparison": {"keep": lost}}}
    assert run_command.missed(thinking, config) == (f"with thinking, {lost['note']}",)


def test_further_labellers_look_at_it_too(behavior: Behavior, keeping: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "_LABELLERS", dict(labelling._LABELLERS))

    @labelling.labeller("even")
    def even(answers: Answers) -> list[Label | None]:
        return ["behavior" if index % 2 else None for index in range(len(answers.texts))]

    found = evaluate(taught(), behavior, splits=keeping, labellers=["even"], tokens=4)
    assert found.keep_labels["markers"] == ("behavior",) * 8
    assert found.keep_labels["even"] == (None, "behavior") * 4
    assert len(found.labels["even"]) == len(keeping.report.target)


def test_eval_shows_it(
    behavior: Behavior, keeping: Splits, strong: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"target": keeping.fit.target, "keep": keeping.report.keep}
    for name, some in files.items():
        rows = ({"prompt": prompt, "category": "odd" if int(prompt[-1]) % 2 else "even"} for prompt in some)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "zig.toml").write_text(
        f'target = "target.jsonl"\nbaseline = "{behavior.baseline["fit"].location}"\nkeep = {{tune = "keep.jsonl"}}\n'
        'max_tokens = 8\nnear_duplicates = 0\n[detectors]\nmarkers = ["no way"]\n',
        encoding="utf-8",
    )
    strong.save(tmp_path / "edit.safetensors")
    monkeypatch.setattr(session.Session, "load_model", lambda *_, **__: taught())
    words = ["--behavior", str(tmp_path / "zig.toml"), "--splits", "8,8,4,4", "--split", "tune"]
    words += ["--edit", str(tmp_path / "edit.safetensors")]
    shown = CliRunner().invoke(cli.app, ["eval", "m", *words, "--out", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    where = "where it must stay"
    for expected in (f"shown {where}", f"is lost {where}", f"category, {where}", "odd", "even"):
        assert expected in " ".join(shown.stdout.split()), expected
    data = json.loads((tmp_path / "out" / "eval.json").read_text(encoding="utf-8"))
    assert data["behaviors"]["zig"]["scores"]["model"]["keep_rate"] == 1.0
    assert data["behaviors"]["zig"]["comparisons"][0]["keep"]["holds"] is False
    page = (tmp_path / "out" / "eval.html").read_text(encoding="utf-8")
    for expected in ("Shown where it must stay", "The behavior is lost where it must stay", "odd (must stay)"):
        assert expected in page, expected
    rows = [json.loads(line) for line in (tmp_path / "out" / "responses-00.jsonl").open(encoding="utf-8")]
    assert [row["side"] for row in rows].count("keep") == 8


def test_strata_come_with_the_prompts_and_cost_no_generation(
    behavior: Behavior, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = PromptSet(
        tuple(Prompt(prompt, category=prompt[4], language="en") for prompt in splits.report.target),
        splits.report.baseline,
    )
    asked: list[int] = []
    generate = rate.generate_from_tokens

    def counted(model: Any, rows: Any, **settings: Any) -> Any:
        asked.append(len(rows))
        return generate(model, rows, **settings)

    monkeypatch.setattr(rate, "generate_from_tokens", counted)
    reference = Reference.measure(taught(), report.baseline, behavior, tokens=4)
    found = evaluate(taught(), behavior, splits=replace(splits, report=report), reference=reference)
    assert asked == [len(report.target), len(report.baseline)]
    strata = found.to_json()["strata"]
    assert {name: row["count"] for name, row in strata["category"].items() if row["count"]} == {
        letter: sum(prompt[4] == letter for prompt in report.target)
        for letter in {prompt[4] for prompt in report.target}
    }
    assert strata["language"]["en"]["rate"] == found.rate.value
    assert strata["language"]["(none)"]["baseline_count"] == len(report.baseline)
    assert "strata" not in evaluate(taught(), behavior, splits=splits, reference=None, tokens=4).others


def test_the_page_says_what_was_kept_and_where() -> None:
    result = fake_result()
    assert "must stay" not in html.render(Record(result))
    result["before"] |= {"keep_rate": 1.0, "keep_rate_interval": [0.8, 1.0]}
    row = {"rate": 0.25, "rate_interval": [0.1, 0.5], "count": 12, "kl_first": {"mean": 0.0123}, "baseline_count": 7}
    result["after"] |= {"keep_rate": 0.5, "keep_rate_interval": [0.3, 0.7], "strata": {"category": {"potions": row}}}
    result["comparison"]["keep"] = compare_kept(verdicts(20), verdicts(10))
    result["splits"] = {name: [*sizes, 20] for name, sizes in result["splits"].items()}
    text = html.render(Record(result))
    for expected in ("Kept where it must stay", "100% → 50%", "potions (target)", "potions (ordinary)", "0.0123"):
        assert expected in text, expected
    assert "The behavior is lost where it must stay" in text
    result["comparison"]["keep"] = compare_kept(verdicts(20), verdicts(18))
    assert "cannot be told" in html.render(Record(result))


def test_a_random_edit_of_no_effect_keeps_it(behavior: Behavior, keeping: Splits) -> None:
    weak = Edit.project(taught().survey, torch.randn(64, generator=torch.Generator().manual_seed(3)), strength=0.05)
    found = [evaluate(taught(), behavior, splits=keeping, edit=edit, tokens=4) for edit in (None, weak)]
    assert compare_kept(found[0].keep_labels, found[1].keep_labels)["holds"] is True
