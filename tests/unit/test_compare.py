"""Two models by the same ruler: tests paired by prompt, one page, and a base model that is measured once."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from excise import Behavior, Edit, EditableModel
from excise.behaviors import Splits
from excise.behaviors.measures import Label
from excise.cli import app as cli
from excise.cli import session
from excise.compare import Ruler, Subject
from excise.errors import InputError
from excise.evaluation import Answers, baseline, labeller
from excise.evaluation.baseline import Baselines
from excise.evaluation.comparison import compare
from excise.report import html, write_evaluation
from excise.seal import FILE
from zoo.taught import taught


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXCISE_CACHE", raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EditableModel:
    """The taught model, from a checkpoint on disk."""
    path = tmp_path_factory.mktemp("model")
    taught().hf_model.save_pretrained(path)
    taught().tokenizer.save_pretrained(path)
    import excise

    return excise.load(path)


@pytest.fixture(scope="module")
def edit(model: EditableModel) -> Edit:
    return Edit.project(model.survey, torch.randn(64, generator=torch.Generator().manual_seed(3)), strength=1.0)


def test_labels_are_paired_and_p_values_corrected() -> None:
    first: dict[str, Any] = {"markers": ["behavior"] * 10, "judge": ["behavior"] * 9 + [None], "mute": [None] * 10}
    second: dict[str, Any] = {"markers": ["comply"] * 10, "judge": ["comply"] * 8 + ["behavior", "comply"]}
    second["mute"] = ["comply"] * 10
    found = compare(first, second)
    assert list(found) == ["markers", "judge"]
    assert (found["judge"].prompts, found["judge"].first, found["judge"].second) == (9, 9, 1)
    assert found["markers"].p_holm == pytest.approx(2 * found["markers"].test.exact)
    assert found["judge"].p_holm == pytest.approx(found["judge"].test.exact)
    told = found["markers"].to_json()
    assert (told["difference"], told["interval"][0], told["only_first"]) == (-1.0, -1.0, 10)
    assert "10 prompts cannot tell a rate of 0 % from" in told["power"]["note"]
    with pytest.raises(InputError, match="paired"):
        compare({"markers": ["comply"]}, {"markers": []})


def test_one_ruler(model: EditableModel, edit: Edit, behavior: Behavior, splits: Splits, tmp_path: Path) -> None:
    ruler = Ruler(tokens=16)
    (measured,) = ruler.begin(model, [Subject("zig", behavior, splits)])
    ruler.add([measured], "edited", model, edit)
    ruler.add([measured], "against", model)
    found = json.loads(json.dumps(ruler.to_json(measured)))
    assert [(pair["first"], pair["second"]) for pair in found["comparisons"]] == [
        ("model", "edited"),
        ("model", "against"),
        ("edited", "against"),
    ]
    edited, same, _ = found["comparisons"]
    rates = {name: scores["rate"] for name, scores in found["scores"].items()}
    assert rates["model"] == rates["against"] > 0.9
    assert edited["labellers"]["markers"]["difference"] == pytest.approx(rates["edited"] - rates["model"])
    assert edited["kl_first"]["difference"] == pytest.approx(found["scores"]["edited"]["kl_first"]["mean"])
    low, high = edited["kl_first"]["interval"]
    assert 0 < low < found["scores"]["edited"]["kl_first"]["mean"] < high
    assert (same["kl_first"]["difference"], same["labellers"]["markers"]["p_exact"]) == (0.0, 1.0)
    ruler.save(measured, tmp_path / "responses.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "responses.jsonl").open(encoding="utf-8")]
    assert [row["side"] for row in rows].count("target") == len(splits.report.target)
    assert rows[0]["measured"]["model"]["labels"] == {"markers": "behavior"}
    assert rows[0]["measured"]["model"]["onset"] == 0
    divergences = [row["measured"]["edited"]["kl_first"] for row in rows if row["side"] == "baseline"]
    assert sum(divergences) / len(divergences) == pytest.approx(found["scores"]["edited"]["kl_first"]["mean"])


def test_the_base_model_is_measured_once(
    model: EditableModel, behavior: Behavior, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, ruler = Subject("zig", behavior, splits), Ruler(tokens=16, baselines=Baselines(tmp_path / "kept"))
    (first,) = ruler.begin(model, [subject])

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("generated again")

    with monkeypatch.context() as patch:
        patch.setattr(baseline, "generate_from_tokens", forbidden)
        patch.setattr(baseline.Reference, "measure", forbidden)
        (again,) = ruler.begin(model, [subject])
        assert ruler.to_json(again) == ruler.to_json(first)
        assert again.reference.compare(model).sequence.max == 0.0
        with pytest.raises(AssertionError, match="again"):
            Ruler(tokens=17, baselines=ruler.baselines).begin(model, [subject])
        with pytest.raises(AssertionError, match="again"):
            ruler.begin(model, [Subject("zig", behavior.with_options(system="Be kind."), splits)])
    for path in (tmp_path / "kept").rglob("*.safetensors"):
        path.write_bytes(b"damaged")
    assert ruler.to_json(ruler.begin(model, [subject])[0]) == ruler.to_json(first)


def test_a_model_in_memory_alone_is_never_kept(behavior: Behavior, splits: Splits, tmp_path: Path) -> None:
    Ruler(tokens=4, baselines=Baselines(tmp_path / "kept")).begin(taught(), [Subject("zig", behavior, splits)])
    assert not (tmp_path / "kept").exists()


def call(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(cli.app, ["eval", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    return data


@pytest.fixture
def files(behavior: Behavior, tmp_path: Path, model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two behavior files and what makes `excise eval` quick."""
    places = (behavior.target["fit"].location, behavior.baseline["fit"].location)
    for name, marker in (("zig", "no way"), ("other", "never said")):
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\ntarget = "{places[0]}"\nbaseline = "{places[1]}"\nmax_tokens = 8\n'
            f'[detectors]\nmarkers = ["{marker}"]\n',
            encoding="utf-8",
        )
    monkeypatch.setattr(session.Session, "load_model", lambda *_, **__: model)
    return ["--splits", "24,12,12,12", "--report-tokens", "16", "--behavior", str(tmp_path / "zig.toml")]


def test_eval_of_several_behaviors_on_one_page(
    files: list[str], tmp_path: Path, edit: Edit, model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    edit.save(run / "edits" / "000.safetensors")
    (run / "manifest.json").write_text("{}", encoding="utf-8")
    out = tmp_path / "out"
    asked = [*files, "--behavior", str(tmp_path / "other.toml"), "--edit", str(run / "edits" / "000.safetensors")]
    data = call(str(model.path), *asked, "--against", str(model.path), "--out", str(out))
    assert set(data["behaviors"]) == {"zig", "other"}
    assert (data["behavior"], set(data["scores"])) == ("zig", {"model", "edited", "against"})
    assert data["behaviors"]["other"]["scores"]["model"]["rate"] == 0.0
    assert json.loads((out / "eval.json").read_text(encoding="utf-8")) == data
    assert data["behaviors"]["zig"]["seal"]["note"] == "report split read once"
    assert len(json.loads((run / FILE).read_text(encoding="utf-8"))["reads"]) == 1  # the same prompts, once
    text = (out / "eval.html").read_text(encoding="utf-8")
    prompts = [json.loads(line)["prompt"] for line in (out / "responses-00.jsonl").open(encoding="utf-8")]
    assert len(prompts) == 24
    assert not any(prompt in text or prompt in json.dumps(data) for prompt in prompts)
    assert str(tmp_path) not in text
    for expected in (
        "zig",
        "other",
        "McNemar",
        "16 tokens",
        "Delayed",
        "cannot tell a rate of",
        "Report split read once",
    ):
        assert expected in text, expected
    again = call(str(model.path), *files, "--out", str(out), "--report-tokens", "8")
    assert again["behaviors"]["zig"]["tokens"] == 8


def test_labellers_are_tested_together(
    files: list[str], model: EditableModel, edit: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = import_module("excise.evaluation.labelling")
    monkeypatch.setattr(registry, "_LABELLERS", dict(registry._LABELLERS))

    @labeller("short")
    def short(answers: Answers) -> list[Label | None]:
        return ["behavior" if len(text) == 6 else None if len(text) == 1 else "comply" for text in answers.texts]

    edit.save(tmp_path / "edit.safetensors")
    words = ["--edit", str(tmp_path / "edit.safetensors"), "--score", "short", "--out", str(tmp_path / "out")]
    found = call(str(model.path), *files, *words)["behaviors"]["zig"]
    compared = found["comparisons"][0]["labellers"]
    assert list(compared) == ["markers", "short"]
    assert all(each["p_holm"] >= each["p_exact"] for each in compared.values())
    assert "short" in found["scores"]["model"]["markers"]["kappa"]
    row = json.loads((tmp_path / "out" / "responses-00.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert set(row["measured"]["edited"]["labels"]) == {"markers", "short"}
    assert "short" in (tmp_path / "out" / "eval.html").read_text(encoding="utf-8")


def test_eval_refuses_what_it_does_not_know(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    wrong = (["--split", "all"], ["--score", "nothing"], ["--out", str(tmp_path / "mine")])
    for words in wrong:
        result = CliRunner().invoke(cli.app, ["eval", "m", *files, *words])
        assert result.exit_code == 1, words
        assert "hint: " in result.stderr
    copy = shutil.copy(files[-1], tmp_path / "copy.toml")
    twice = CliRunner().invoke(cli.app, ["eval", "m", *files, "--behavior", str(copy)])
    assert (twice.exit_code, "given twice" in twice.stderr) == (1, True)


def test_thinking_both_measures_each(files: list[str], model: EditableModel) -> None:
    data = call(str(model.path), *files, "--thinking", "both", "--split", "tune")
    assert {name: found["thinking"] for name, found in data["behaviors"].items()} == {
        "zig": False,
        "zig, thinking": True,
    }
    assert data["behaviors"]["zig"]["tokens"] == 16
    assert data["behaviors"]["zig"]["seal"] is None


@pytest.mark.parametrize("data", [{}, {"behaviors": {"a": None, "b": {"scores": {"model": []}, "comparisons": [1]}}}])
def test_the_page_bears_what_is_missing(data: dict[str, Any], tmp_path: Path) -> None:
    assert "<html" in write_evaluation(data, tmp_path).read_text(encoding="utf-8")
    assert "script-src 'none'" in html._policy()
