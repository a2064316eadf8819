"""Every scorer that comes with the package passes the suite that it is published with, and the suite can fail."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.behaviors import Behavior
from excise.behaviors.measures import Margin
from excise.evaluation import Answers, Subject, Verdicts, labellers_for, labelling, requested, score_names, scorer_named
from excise.evaluation.conformance import check_labeller, check_scorer, demo_subject
from excise.model.generate import generate

BEGINNINGS = Margin(behavior=("I am sorry",), alternative=("The", "It is"))


@pytest.fixture(scope="module")
def subject() -> Subject:
    plain = demo_subject()
    return replace(plain, behavior=plain.behavior.model_copy(update={"margin": BEGINNINGS}))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "tasks.jsonl").write_text(json.dumps({"prompt": "What is it?", "answers": ["a bell", 3]}) + "\n")
    (folder / "text.txt").write_text("The material of the craft is moon salt. The dish has a main part. " * 3)
    return folder


@pytest.mark.parametrize(
    "name", ["strata", "length", "language", "margin", "exact-match:tasks.jsonl", "perplexity:text.txt"]
)
def test_the_shipped_scorers_conform(name: str, subject: Subject, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    check_scorer(scorer_named(name), subject)


def test_every_name_is_tested() -> None:
    elsewhere = {"classifier", "judge[:MODEL]", "lm-eval:TASK"}  # need a model, a server, a package
    here = {"strata", "length", "language", "margin", "exact-match:FILE.jsonl", "perplexity:FILE", "markers"}
    assert here | elsewhere <= set(score_names())


@pytest.mark.parametrize("behavior", ["refusal", "demo:sealed", "demo:disclaimer"])
def test_markers_conform(behavior: str) -> None:
    loaded = Behavior.load(behavior)
    check_labeller(labellers_for(loaded)["markers"], loaded)


# ---- the suite can fail


CALLS = itertools.count()
HANDLES: list[Any] = []


def counting(subject: Subject) -> dict[str, Any]:
    return {"calls": next(CALLS)}


def training(subject: Subject) -> dict[str, Any]:
    subject.model.hf_model.train()
    return {"a": 1}


def scaling(subject: Subject) -> dict[str, Any]:
    with torch.no_grad():
        next(subject.model.hf_model.parameters()).mul_(1.0)
    return {"a": 1}


def hooking(subject: Subject) -> dict[str, Any]:
    HANDLES.append(subject.model.hf_model.register_forward_hook(lambda *_: None))
    return {"a": 1}


def drawing(subject: Subject) -> dict[str, Any]:
    return {"a": torch.rand(()).item()}


def fickle(subject: Subject) -> dict[str, Any]:
    text = generate(subject.model, subject.prompts.target[:1], max_tokens=4)[0].text
    return {"words": {text: 1}}


def fragile(subject: Subject) -> dict[str, Any]:
    shortest = min((len(response.text) for response in subject.responses), default=1)
    return {"per_character": 1 / shortest if shortest else None}


BAD: dict[Callable[[Subject], Any], str] = {
    counting: "second call",
    training: "another mode",
    scaling: "changed the model's weights",
    hooking: "left hooks",
    drawing: "random numbers",
    fickle: "other keys",
    fragile: "other keys",
    lambda subject: {"a": torch.ones(1)}: "JSON",
    lambda subject: {"a": {1: 2}}: "keys are text",
    lambda subject: [1]: "dictionary",
    lambda subject: {}: "nothing",
}


@pytest.mark.parametrize("function", BAD)
def test_a_scorer_that_breaks_a_rule_is_told_which(function: Callable[[Subject], Any], subject: Subject) -> None:
    try:
        with pytest.raises(AssertionError, match=BAD[function]):
            check_scorer(function, subject)
    finally:
        subject.model.hf_model.eval()
        while HANDLES:
            HANDLES.pop().remove()


BAD_LABELLERS: dict[Callable[[Answers], Any], str] = {
    lambda answers: ["comply"]: "labels for",
    lambda answers: ["fine" for _ in answers.texts]: "'fine'",
    lambda answers: ["comply" if index else "deflect" for index, _ in enumerate(answers.texts)]: "order",
    lambda answers: ["comply" if next(CALLS) % 7 else None for _ in answers.texts]: "second call",
    lambda answers: ["comply" if len(answers.texts) > 2 else None for _ in answers.texts]: "other answers",
    lambda answers: Verdicts(("comply",) * len(answers.texts), {"a": {1, 2}}): "JSON",
}


@pytest.mark.parametrize("function", BAD_LABELLERS)
def test_a_labeller_that_breaks_a_rule_is_told_which(function: Callable[[Answers], Any]) -> None:
    with pytest.raises(AssertionError, match=BAD_LABELLERS[function]):
        check_labeller(function)


def test_a_labeller_may_leave_everything_unknown() -> None:
    check_labeller(lambda answers: [None] * len(answers.texts))


def test_the_examples_of_the_documentation_conform(monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
    monkeypatch.setattr("excise.evaluation.requested._OFFERS", dict(requested._OFFERS))
    monkeypatch.setattr("excise.evaluation.labelling._LABELLERS", dict(labelling._LABELLERS))
    page = (Path(__file__).parents[2] / "docs" / "scorers.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "@offered" in block]
    exec(code, {"__name__": "examples"})
    check_scorer(scorer_named("shouting"), subject)
    check_scorer(scorer_named("at-most:50"), subject)
    check_labeller(labellers_for(subject.behavior, ["yes-or-no"])["yes-or-no"])
