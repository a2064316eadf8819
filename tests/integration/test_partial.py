"""A model that cannot be edited exactly: refused by name, or edited all the same and reported with its leak."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import excise
from excise.cli.app import app
from excise.errors import SurveyError
from zoo.build import build
from zoo.letters import CHATML, letters

SETTINGS = {"trials": 2, "splits": (16, 8, 8, 8), "max_tokens": 6, "force": True, "marker": ("a",)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3n with a tokenizer: every layer adds its input once more behind a gained norm."""
    folder = tmp_path_factory.mktemp("models") / "gemma3n"
    build("gemma3n_text", spread=1.5).save_pretrained(folder)
    letters(template=CHATML).save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, str]:
    """Two files of ordinary prompts."""
    texts = {"target": "tell me of number", "baseline": "count the items in box"}
    for side, text in texts.items():
        (tmp_path / f"{side}.txt").write_text("\n".join(f"{text} {number} {number * 7 % 13}" for number in range(60)))
    return {side: str(tmp_path / f"{side}.txt") for side in texts}


def test_a_run_refuses_it_and_names_the_gains(model: Path, prompts: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SurveyError, match=r"behind a gained norm.*layers\.0\.input_layernorm\.weight"):
        excise.run(str(model), out=tmp_path / "run", **prompts, **SETTINGS)


def test_a_partial_run_reports_the_leak(model: Path, prompts: dict[str, str], tmp_path: Path) -> None:
    result = excise.run(str(model), out=tmp_path / "run", allow_partial=True, **prompts, **SETTINGS)
    assert 1e-3 < result["leak"] < 0.5
    assert 1e-3 < result["leak_baked"] < 0.5
    assert result["coverage"] < 1
    assert any("not fully covered" in warning for warning in result["warnings"])
    assert any("input_layernorm" in words for words in result["skipped"])
    assert f"{result['leak']:.1e}"[:3] in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_find_and_search_refuse_it_too(model: Path, prompts: dict[str, str], tmp_path: Path) -> None:
    sides = ["--target", prompts["target"], "--baseline", prompts["baseline"], "--marker", "a", "--splits", "16,8,8,8"]
    found = CliRunner().invoke(app, ["find", str(model), *sides])
    assert found.exit_code == 1
    assert "behind a gained norm" in found.stderr
    searched = CliRunner().invoke(app, ["search", str(model), *sides, "--out", str(tmp_path / "search")])
    assert searched.exit_code == 1
    assert "--allow-partial" in searched.stderr
    partial = CliRunner().invoke(app, ["find", str(model), *sides, "--allow-partial", "--json"])
    assert partial.exit_code == 3, partial.output
    assert "best" in json.loads(partial.stdout)
    assert "not fully covered" in partial.stderr
