"""The whole job on the bundled model: ground truth, controls, resume, and what reaches the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import excise
from excise import stages, validation
from excise.demo import MODEL_PATH
from excise.demo.ground_truth import ground_truth
from excise.edit import Edit
from excise.evaluation import scorers

TRIALS = 12


@pytest.fixture(scope="module", params=["sealed", "disclaimer"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / request.param
    result = excise.run(
        str(MODEL_PATH),
        behavior=f"demo:{request.param}",
        out=out,
        trials=TRIALS,
        ground_truth=ground_truth,
        score=("length",),
    )
    return out, result


def test_the_behavior_goes_and_the_rest_stays(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    truth = result["demo"]
    assert result["before"]["rate"] >= 0.97
    assert result["after"]["rate"] <= 0.05
    assert truth["ordinary_correct"][1] >= truth["ordinary_correct"][0] - 0.02
    if result["behavior"] == "sealed":
        assert truth["sealed_correct"][0] <= 0.06
        assert truth["sealed_correct"][1] >= 0.70
        assert truth["disclaimer"][1] >= truth["disclaimer"][0] - 0.04
    else:
        assert truth["disclaimer"][1] <= 0.05
        assert truth["sealed_refused"][1] >= truth["sealed_refused"][0] - 0.04
        assert truth["disclaimed_correct"][1] >= truth["disclaimed_correct"][0] - 0.04


def test_proofs(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    assert result["coverage"] == 1.0
    assert result["leak"] < 1e-4
    assert result["verify"]["passed"], [check for check in result["verify"]["checks"] if not check["passed"]]
    assert result["leak_baked"] < 1e-3
    at_full_strength = result["verify"]["leak"]
    assert at_full_strength is None or at_full_strength < 1e-3


def test_controls(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    no_op, random = result["controls"]["no_op"], result["controls"]["random_direction"]
    assert no_op["kl_first"]["max"] == 0.0
    assert no_op["kl_sequence"]["max"] == 0.0
    assert no_op["rate"] == result["before"]["rate"]
    assert random["rate"] >= result["before"]["rate"] - 0.1
    assert [draw["prompts"] for draw in random["draws"]] == [[100, 100], [32, 32], [32, 32]]
    assert random["draws"][0]["rate"] == random["rate"]
    assert random["spread"]["rate"][0] >= result["before"]["rate"] - 0.15


def test_scorers_that_are_asked_for(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    before, after = (result[side]["length"]["target"]["tokens"] for side in ("before", "after"))
    assert before != after
    assert "length" not in result["controls"]["no_op"]
    assert f"{before:.4g}" in (out / "report.html").read_text(encoding="utf-8")


def test_statistics(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    compared = result["comparison"]["labellers"]["markers"]
    assert compared["difference"] == pytest.approx(result["after"]["rate"] - result["before"]["rate"])
    assert compared["interval"][0] <= compared["difference"] <= compared["interval"][1] < -0.8
    assert compared["p_exact"] < 1e-6
    low, high = result["comparison"]["kl_first_interval"]
    assert low <= result["after"]["kl_first"]["mean"] <= high
    assert result["before"]["positions"]["tokens"] == 512
    assert (result["seal"]["reads"], result["seal"]["unseen"]) == (1, True)
    assert result["seal"]["digest"] == result["prompts"]["report"]
    rows = [json.loads(line) for line in next(out.glob("stages/report-*/responses.jsonl")).open()]
    shown = [row["measured"]["after"]["labels"]["markers"] == "behavior" for row in rows if row["side"] == "target"]
    assert sum(shown) / len(shown) == result["after"]["rate"]


def test_what_reaches_the_disk(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert {"result.json", "report.html", "README.md", "edit.safetensors", "model", "edits"} <= {
        path.name for path in out.iterdir()
    }
    assert result["forecast"]["bytes"] > 0
    assert result["forecast"]["seconds"] > 0
    assert result["peak_bytes"] > 0
    for point in result["front"]:
        assert Edit.load(out / point["edit"]).sites
    assert sum(point["chosen"] for point in result["front"]) == 1
    prompts = [json.loads(line)["prompt"] for line in next(out.glob("stages/report-*/responses.jsonl")).open()]
    shown = (out / "report.html").read_text() + (out / "README.md").read_text() + json.dumps(result)
    assert not any(prompt in shown for prompt in prompts)


def test_the_baked_model_is_the_live_edit(finished: tuple[Path, dict[str, Any]]) -> None:
    out, _ = finished
    base, baked = excise.load(MODEL_PATH), excise.load(out / "model")
    edit = Edit.load(out / "edit.safetensors")
    tokens = torch.randint(10, 400, (4, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), base.edited(edit):
        live = base.hf_model(tokens).logits.float()
    with torch.no_grad():
        written = baked.hf_model(tokens).logits.float()
    assert (live - written).norm() / live.norm() < 0.02
    before, after = load_file(MODEL_PATH / "model.safetensors"), load_file(out / "model" / "model.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {site.writer.parameter for site in edit.sites}


def test_a_finished_run_is_not_run_again(
    finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, result = finished
    copy = tmp_path / "again"
    shutil.copytree(out, copy)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    for name in ("find_directions", "behavior_rate", "bake"):
        monkeypatch.setattr(stages, name, forbidden)
    monkeypatch.setattr(validation, "evaluate", forbidden)
    again = excise.run(
        str(MODEL_PATH),
        behavior=f"demo:{result['behavior']}",
        out=copy,
        trials=TRIALS,
        ground_truth=ground_truth,
        score=("length",),
    )
    assert "length" not in scorers()
    for key in ("before", "after", "controls", "demo", "front", "edit"):
        assert again[key] == json.loads(json.dumps(result[key])), key


def test_other_settings_do_not_share_a_directory(finished: tuple[Path, dict[str, Any]]) -> None:
    out, result = finished
    with pytest.raises(excise.ExciseError, match="trials"):
        excise.run(str(MODEL_PATH), behavior=f"demo:{result['behavior']}", out=out, trials=TRIALS + 1)


def test_a_behavior_that_is_not_shown_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(excise.ExciseError, match="0%") as error:
        excise.run(str(MODEL_PATH), behavior="demo:sealed", marker=("hippopotamus",), out=out)
    assert "--force" in error.value.hint
    assert not out.exists()
