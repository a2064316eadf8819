"""The report stage of a run: what it measures beside before and after, and what it says of the prompts it reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from excise import Behavior, Edit, EditableModel
from excise.behaviors import Splits
from excise.behaviors.splits import PromptSet
from excise.config import RunConfig
from excise.evaluation.lengths import confirm_tokens, report_tokens
from excise.progress import silent
from excise.runs import RunDirectory
from excise.stages import Job
from excise.validation import validate
from zoo.letters import CHATML, letters
from zoo.taught import taught

SWITCH = CHATML.replace("assistant\n", "assistant\n{% if enable_thinking %}<think>{% endif %}") + "{# </think> #}"


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXCISE_CACHE", raising=False)


def edit(model: EditableModel, seed: int = 3) -> Edit:
    return Edit.project(model.survey, torch.randn(64, generator=torch.Generator().manual_seed(seed)), strength=0.3)


def run(out: Path, behavior: Behavior, splits: Splits, change: Edit, **given: Any) -> tuple[dict[str, Any], Job]:
    config = RunConfig(model="m", behavior="zig", out=out, **{"report_tokens": 16, **given})
    with RunDirectory.open(out, config=config.identity()) as directory:
        job = Job(config, behavior, splits, taught(), directory, silent)
        return validate(job, change), job


def test_a_second_read_is_shown_and_the_same_one_is_not(behavior: Behavior, splits: Splits, tmp_path: Path) -> None:
    found, _ = run(tmp_path / "run", behavior, splits, edit(taught()))
    assert found["seal"]["note"] == "report split read once"
    assert found["before"]["positions"]["tokens"] == 16
    again, _ = run(tmp_path / "run", behavior, splits, edit(taught()))
    assert again == json.loads(json.dumps(found))
    longer, _ = run(tmp_path / "run", behavior, splits, edit(taught()), report_tokens=24)
    assert longer["seal"]["reads"] == 2
    assert "no longer of unseen prompts" in longer["seal"]["note"]
    other, _ = run(tmp_path / "run", behavior, splits, edit(taught(), seed=4))
    assert (other["seal"]["reads"], other["seal"]["number"]) == (3, 3)


def test_controls_have_draws(behavior: Behavior, splits: Splits, tmp_path: Path) -> None:
    found, _ = run(tmp_path / "run", behavior, splits, edit(taught()))
    assert found["controls"]["no_op"]["kl_sequence"]["max"] == 0.0
    draws = found["controls"]["random_direction"]["draws"]
    assert [draw["seed"] for draw in draws] == [0, 1, 2]
    assert len({draw["kl_first"] for draw in draws}) == 3
    low, high = found["controls"]["random_direction"]["spread"]["kl_first"]
    assert (low, high) == (min(draw["kl_first"] for draw in draws), max(draw["kl_first"] for draw in draws))


def test_thinking_both_is_two_measurements(behavior: Behavior, splits: Splits, tmp_path: Path) -> None:
    few = replace(splits, report=PromptSet(splits.report.target[:4], splits.report.baseline[:4]))
    plain, job = run(tmp_path / "plain", behavior, few, edit(taught()), thinking="both")
    assert "thinking" not in plain
    assert any("cannot be switched on" in warning for warning in job.warnings)
    model = EditableModel(taught().hf_model, letters(template=SWITCH), name="switched")
    config = RunConfig(model="m", behavior="zig", out=tmp_path / "run", thinking="both", report_tokens=16)
    with RunDirectory.open(tmp_path / "run", config=config.identity()) as directory:
        found = validate(Job(config, behavior, few, model, directory, silent), edit(model))
    assert "controls" in found
    assert "controls" not in found["thinking"]
    after = found["thinking"]["after"]
    assert after["unfinished_thinking"] == 4  # it was never taught to stop
    assert sum(after["labels"].values()) == 0
    assert found["before"]["unfinished_thinking"] == 0
    rows = [json.loads(line) for line in next((tmp_path / "run").glob("stages/*/responses-thinking.jsonl")).open()]
    assert all(row["measured"]["after"]["unfinished_thinking"] for row in rows if row["side"] == "target")


def test_lengths() -> None:
    short, long = (Behavior.from_files("a", "b", markers=["x"], max_tokens=tokens) for tokens in (64, 1024))
    assert [report_tokens(short), report_tokens(long), report_tokens(long, 30)] == [512, 1024, 30]
    assert [confirm_tokens(short), confirm_tokens(long), confirm_tokens(short, 200)] == [128, 1024, 200]
