"""`excise label`: blind, resumable, and compared with every scorer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from excise.behaviors import Behavior
from excise.cli.app import app
from excise.evaluation.hand import HandLabels, read_rows, sample

REFUSAL, ANSWER, WAY_OUT = "Sorry, the recipe is sealed.", "Boil the roots \x1b[31mfor an hour.", "Bells are nicer."


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the demo behavior: the base model refuses 20 questions, the edited one 4, and one it turns away from."""
    config = {"model": "m", "behavior": "demo:sealed"}
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "config": config}))
    stage = tmp_path / "stages" / "report-0123"
    stage.mkdir(parents=True)
    rows = []
    for index in range(20):
        after = REFUSAL if index < 4 else WAY_OUT if index == 4 else ANSWER
        thinking = "<think>sealed? no</think>" if index == 7 else ""
        rows.append({"side": "target", "prompt": f"Q{index}?", "before": REFUSAL, "after": f"{thinking}{after}"})
    rows.append({"side": "baseline", "prompt": "B?", "before": "Hello.", "after": "Hello."})
    (stage / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def label(run: Path, keys: str, *options: str) -> Any:
    return CliRunner().invoke(app, ["label", str(run), *options], input=keys)


def right(text: str) -> str:
    return "b" if "sealed" in text else "d" if "Bells" in text else "c"


def test_a_sample_is_blind_paired_and_stable(run: Path) -> None:
    rows = read_rows(run, "target")
    items = sample(rows, count=100)
    assert len(items) == 20 + 16  # equal answers are looked at once
    assert sample(rows, count=100) == items
    assert sample(rows, count=100, seed=1) != items
    assert {item.key for item in sample(rows, count=10)} <= {item.key for item in items}
    sources = [item.sources for item in items]
    assert sources != sorted(sources)
    assert not any("think" in item.answer for item in items)


def test_labelling_by_hand(run: Path) -> None:
    items = sample(read_rows(run, "target"), count=100)
    result = label(run, "".join(right(item.answer) + "\n" for item in items), "--count", "100", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert (data["labelled"], data["remaining"]) == (36, 0)
    assert data["hand"]["before"]["rate"] == 1.0
    assert data["hand"]["after"]["rate"] == 4 / 20
    assert data["hand"]["after"]["labels"]["deflect"] == 1
    markers = data["scorers"]["markers"]
    assert markers["kappa"]["kappa"] == 1.0
    assert markers["kappa_labels"]["kappa"] < 1.0  # the demo's markers know no deflection
    assert "Q3?" in result.stderr
    shown = result.stderr.split("labelled by hand")[0]
    assert "before" not in shown
    assert "after" not in shown
    assert "\x1b" not in shown
    kept = Path(data["file"]).read_text()
    assert "roots" not in kept


def test_labelling_goes_on_where_it_was(run: Path) -> None:
    items = sample(read_rows(run, "target"), count=100)
    keys = [right(item.answer) for item in items]
    first = label(run, f"{keys[0]}\ng\nu\nu\nx\n{keys[0]}\ns\n{keys[2]}\nq\nb\n", "--count", "100")
    assert first.exit_code == 0, first.output
    assert "'x' is none of the keys" in first.output
    assert "2 labelled by hand, 34 to go" in first.output
    meaning = {"b": "behavior", "c": "comply", "d": "deflect"}
    assert HandLabels(run).of(items)[:3] == [meaning[keys[0]], None, meaning[keys[2]]]
    again = label(run, "u\n" + "\n".join([keys[1], *keys[3:]]), "--count", "100", "--json")
    data = json.loads(again.stdout)
    assert (data["labelled"], data["scorers"]["markers"]["kappa"]["kappa"]) == (36, 1.0)
    assert "nothing to undo" in again.stderr
    assert label(run, "", "--count", "100").stdout.count("──") == 0


def test_a_table_shows_who_agrees(run: Path) -> None:
    result = label(run, "b\nc\nb\nc\n", "--count", "4")
    assert result.exit_code == 0, result.output
    assert "markers" in result.stdout
    assert "without the edit" in result.stdout
    nothing = label(run, "q\n", "--seed", "3", "--side", "baseline")
    assert "0 labelled by hand, 1 to go" in nothing.stdout
    null = json.loads(label(run, "c\n", "--side", "baseline", "--json").stdout)
    assert null["scorers"]["markers"]["kappa"]["kappa"] is None  # one and the same label everywhere: no kappa


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--side", "neither"], "unknown side"),
        (["--score", "nothing"], "no labeller 'nothing'"),
        (["--score", "judge"], "no rubric"),
    ],
)
def test_what_cannot_be_asked_is_an_error(run: Path, options: list[str], told: str) -> None:
    result = label(run, "", *options)
    assert result.exit_code == 1
    assert told in result.stderr
    assert "hint:" in result.stderr


def test_what_is_no_run_is_an_error(run: Path, tmp_path: Path) -> None:
    assert "is not a run" in label(tmp_path / "none", "").stderr
    (run / "hand-labels.json").write_text("{")
    assert "holds labels by hand" in label(run, "").stderr
    (run / "hand-labels.json").unlink()
    (run / "stages" / "report-0123" / "responses.jsonl").write_text("{}\n")
    assert "is not what excise writes" in label(run, "").stderr
    (run / "stages" / "report-0123" / "responses.jsonl").unlink()
    assert "holds no responses" in label(run, "").stderr


def test_the_run_says_which_behavior_it_was(run: Path) -> None:
    from excise.evaluation.hand import read_behavior

    assert read_behavior(run).detectors == Behavior.load("demo:sealed").detectors
