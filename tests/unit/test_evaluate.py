"""One call measures everything, with or without an edit, and leaves the model as it was."""

from __future__ import annotations

import json

import pytest
import torch

from excise import Edit, EditableModel, ExciseError, evaluate
from excise.behaviors import Behavior, PromptSet, Splits
from excise.evaluation import Reference, Subject, registry, scorer, scorers
from zoo.letters import CHATML, letters
from zoo.tiny import build


def prompt_set(name: str) -> PromptSet:
    return PromptSet(
        target=tuple(f"target {name} {index}" for index in range(3)),
        baseline=tuple(f"baseline {name} {index}" for index in range(4)),
    )


SPLITS = Splits(*(prompt_set(name) for name in ("fit", "tune", "select", "report")))
BEHAVIOR = Behavior.from_files("a.txt", "b.txt", markers=["zzzz"], max_tokens=8)
KEYS = {"rate", "rate_interval", "labels", "kl_first", "kl_sequence", "top1", "perplexity_ratio"}


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return EditableModel(build("llama", spread=2.0), letters(template=CHATML))


def test_scores_of_the_base_model(model: EditableModel) -> None:
    scores = evaluate(model, BEHAVIOR, splits=SPLITS, tokens=4)
    assert scores.divergence.sequence.max == 0.0
    assert scores.rate.total == 3
    assert scores.baseline_rate is not None
    assert scores.baseline_rate.total == 4
    content = json.loads(json.dumps(scores.to_json()))
    assert set(content) >= KEYS | {"split", "baseline_rate", "baseline_rate_interval", "baseline_labels"}
    assert set(content["kl_first"]) == {"mean", "median", "p95", "max"}


def test_an_edit_is_live_only_while_it_is_scored(model: EditableModel) -> None:
    tokens = torch.arange(3, 20)[None]
    before = model.hf_model(tokens).logits
    edit = Edit.project(model.survey, torch.randn(64, generator=torch.Generator().manual_seed(1)))
    reference = Reference.measure(model, SPLITS.tune.baseline, BEHAVIOR, tokens=4)
    scores = evaluate(model, BEHAVIOR, edit=edit, split="tune", splits=SPLITS, reference=reference, baseline=False)
    assert scores.divergence.sequence.mean > 0
    assert scores.baseline_rate is None
    assert "baseline_rate" not in scores.to_json()
    assert torch.equal(model.hf_model(tokens).logits, before)


def test_a_reference_of_another_split_is_refused(model: EditableModel) -> None:
    reference = Reference.measure(model, SPLITS.tune.baseline[:2], BEHAVIOR, tokens=4)
    with pytest.raises(ExciseError, match="reference"):
        evaluate(model, BEHAVIOR, splits=SPLITS, reference=reference)


def test_a_scorer_is_one_registered_function(model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_SCORERS", dict(scorers()))

    seen: list[Subject] = []

    @scorer("prompts")
    def count_prompts(subject: Subject) -> dict[str, float]:
        seen.append(subject)
        return {"prompts": len(subject.prompts.target) + len(subject.reference.prompts), "unknown": float("nan")}

    assert "prompts" in scorers()
    scores = evaluate(model, BEHAVIOR, splits=SPLITS, tokens=2)
    assert scores.to_json()["prompts"] == 7
    assert scores.to_json()["unknown"] is None
    assert seen[0].responses == scores.responses  # shared, not generated again
    assert seen[0].baseline_responses == scores.baseline_responses
    assert seen[0].divergence is scores.divergence
    with pytest.raises(ExciseError, match="already"):
        scorer("prompts")(count_prompts)
