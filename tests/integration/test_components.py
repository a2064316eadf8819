"""Components of the demo's behaviors: found, confirmed against chance, and removed by an edit that bakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import excise
from excise import Behavior, Edit, EditableModel
from excise.analysis import Components, components
from excise.cli.app import app
from excise.demo import MODEL_PATH
from excise.edit import Mask
from excise.errors import BehaviorNotShownError, InputError


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return excise.load(MODEL_PATH)


@pytest.fixture(scope="module", params=["sealed", "disclaimer"])
def found(request: pytest.FixtureRequest, model: EditableModel) -> tuple[str, Components]:
    return request.param, components(model, f"demo:{request.param}", seed=0)


def test_the_writes_make_up_the_difference(found: tuple[str, Components]) -> None:
    assert found[1].attribution.accounted == pytest.approx(1.0, abs=0.01)
    assert found[1].notes == ()
    assert dict(found[1].counts) == {"layer": 8, "writer": 17, "head": 48, "neuron": 3072}
    for kind, rows in found[1].rows.items():
        sizes = [abs(row.contribution) for row in rows]
        assert sizes == sorted(sizes, reverse=True)
        assert len(rows) == min(20, found[1].counts[kind])


def test_ablating_the_first_lowers_the_rate_and_chance_does_not(found: tuple[str, Components]) -> None:
    """Refusals are written by neurons, disclaimers by heads."""
    name, result = found
    assert result.base is not None
    confirmed = {each.kind: each for each in result.confirmations if each.confirmed}
    assert list(confirmed) == [{"sealed": "neuron", "disclaimer": "head"}[name]]
    (taken,) = confirmed.values()
    assert taken.together.rate < 0.6 * result.base.rate
    assert all(other.rate > 0.95 * result.base.rate for other in taken.control)
    assert taken.together.kl_first < 0.05
    assert len(taken.singly) == 3
    assert len(taken.control) == 3


def test_the_edit_removes_the_behavior_on_unseen_prompts(found: tuple[str, Components], model: EditableModel) -> None:
    name, result = found
    assert result.edit is not None
    assert result.effect is not None
    assert all(isinstance(change, Mask) for site in result.edit.sites for change in site.changes)
    assert result.edit.scores == {"tune": result.effect.to_json()}
    scores = excise.evaluate(model, f"demo:{name}", edit=result.edit, split="report", seed=0, baseline=False)
    assert scores.rate.value < 0.2
    assert scores.divergence.first.mean < 0.01


def test_the_same_seed_gives_the_same(model: EditableModel) -> None:
    one, other = (components(model, "demo:disclaimer", seed=3, top=2) for _ in range(2))
    assert one.to_json() == other.to_json()


def test_without_ablation_nothing_is_generated(model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.analysis.localise.Bench", None)
    result = components(model, "demo:sealed", ablate=False, top=5)
    assert (result.base, result.confirmations, result.edit) == (None, (), None)
    assert len(result.rows["neuron"]) == 5


def test_what_cannot_be_asked(model: EditableModel) -> None:
    with pytest.raises(InputError, match="top 0"):
        components(model, "demo:sealed", top=0)
    silent = Behavior.load("demo:sealed").model_copy(
        update={"detectors": Behavior.from_files("a", "b", markers=["hippopotamus"]).detectors}
    )
    with pytest.raises(BehaviorNotShownError, match="none of"):
        components(model, silent)


def test_the_command(tmp_path: Path) -> None:
    edit, runner = tmp_path / "mask.safetensors", CliRunner()
    arguments = ["find", str(MODEL_PATH), "--behavior", "demo:disclaimer", "--components-edit", str(edit)]
    result = runner.invoke(app, [*arguments, "--top", "7", "--json"])
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)["components"]
    assert data["edit"] == str(edit)
    assert [len(data[kind]) for kind in ("layers", "writers", "heads", "neurons")] == [7, 7, 7, 7]
    assert {each["kind"] for each in data["confirmations"]} == {"head", "neuron"}
    assert len(Edit.load(edit).sites) > 1
    again = runner.invoke(app, arguments)
    assert again.exit_code == 1
    assert "exists" in again.stderr


def test_the_command_shows_tables_and_says_what_was_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.analysis.confirmation.Confirmation.confirmed", False)
    edit = tmp_path / "mask.safetensors"
    arguments = ["find", str(MODEL_PATH), "--behavior", "demo:sealed", "--components-edit", str(edit), "--top", "3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3, result.stderr
    assert not edit.exists()
    assert "no set of components was confirmed" in result.stderr
    for text in ("layers (8):", "heads (48):", "neurons (3072):", "3 random neurons", "not confirmed", "%"):
        assert text in result.stdout
