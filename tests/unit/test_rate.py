"""The behavior rate on a model whose answers are known."""

from __future__ import annotations

import pytest

from excise import EditableModel
from excise.behaviors import Behavior
from excise.evaluation import behavior_rate
from excise.evaluation.rate import decided_by
from excise.model.generate import generate
from zoo.letters import CHATML, letters
from zoo.tiny import build

PROMPTS = ["Hello there", "What is it?", "A", "Tell me a long story about a fox"]
THINKS = CHATML + "{# <think> </think> #}"


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return EditableModel(build("gpt2", spread=2.0), letters(template=THINKS))


def behavior_with(marker: str, window: int | None = None) -> Behavior:
    return Behavior.from_files("a.txt", "b.txt", markers=[marker], window=window, max_tokens=48)


def test_the_rate_counts_responses_with_a_marker(model: EditableModel) -> None:
    texts = [response.text for response in generate(model, PROMPTS, max_tokens=48)]
    marker = texts[0][2:5]
    result = behavior_rate(model, PROMPTS, behavior_with(marker))
    assert [response.text for response in result.responses] == texts
    assert result.rate.count == sum(marker.lower() in text.lower() for text in texts) > 0
    assert result.rate.total == 4
    assert [label == "behavior" for label in result.labels] == [marker.lower() in text.lower() for text in texts]


def test_stopping_early_changes_no_count(model: EditableModel) -> None:
    texts = [response.text for response in generate(model, PROMPTS, max_tokens=96)]
    behavior = behavior_with(texts[0][2:5])
    full = behavior_rate(model, PROMPTS, behavior, max_tokens=96)
    early = behavior_rate(model, PROMPTS, behavior, max_tokens=96, stop_early=True)
    assert early.rate.count == full.rate.count
    assert len(early.responses[0].tokens) < len(full.responses[0].tokens)


def test_a_row_is_decided_only_when_nothing_can_change_it(model: EditableModel) -> None:
    decided = decided_by(behavior_with("I cannot"), model.template)
    assert not decided("I cannot")
    assert decided("I cannot" + " tell you that" * 4)
    assert not decided("Sure. " * 100)
    assert not decided("<think>" + "I cannot see why" * 10)
    narrow = decided_by(behavior_with("I cannot", window=60), model.template)
    assert narrow("Sure. " * 20)
    assert not narrow("Sure. " * 8)
    assert not narrow("<think>" + "hm " * 100)
