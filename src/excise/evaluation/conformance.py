"""The test suite for scorers and labellers, ours and yours: call it in your own tests.

    from excise.evaluation import conformance

    def test_my_scorer():
        conformance.check_scorer(my_scorer)

    def test_my_labeller():
        conformance.check_labeller(my_labeller, behavior)

Each check raises `AssertionError` with what is wrong. The subject is the bundled demo model with a few of its prompts,
so neither network nor accelerator is needed; give your own where a scorer needs another.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from numbers import Real
from typing import Any

import torch

from excise.behaviors import Behavior, PromptSet
from excise.demo import MODEL_PATH, PROMPTS_PATH
from excise.edit import Edit
from excise.evaluation.labelling import Answers, Labeller, Verdicts
from excise.evaluation.labels import LABELS
from excise.evaluation.reference import Reference
from excise.evaluation.registry import Scorer, Subject
from excise.evaluation.responses import baseline_responses, target_responses
from excise.model import EditableModel
from excise.model.generate import Response
from excise.model.load import load

__all__ = ["LONG_WORDS", "ODD_TEXTS", "check_labeller", "check_scorer", "demo_subject"]

ODD_TEXTS: tuple[str, ...] = (
    "",
    "  \n\t ",
    "a",
    "the the the the the the the the the the the the the the the the the the",
    "港は夜明けに開きます。",
    "\ufffd\ufffd\x00\x1b[31m",
    '{} [] \\ " %s {label} <|im_end|> </think>',
    '{"label": "comply"}',
    "\U0001f980" * 50,
)
"""Responses that models do give, and that scorers must take."""
LONG_WORDS = 20_000
"""How many words the longest response of the suite has."""


def check_scorer(function: Scorer, subject: Subject | None = None) -> None:
    """A scorer returns JSON values, with numbers under the same keys for every edit and every kind of response, the
    same each time, NaN (not None) where it has no number; and leaves the model, torch's random numbers and an edit that
    is live as they were."""
    given = subject or demo_subject()
    first = _asked(function, given)
    assert first, "the scorer returned nothing at all"
    _assert_same(first, _asked(function, given), "a second call returned something else")
    for name, edit in _edits(given.model).items():
        with given.model.edited(edit):
            found = _asked(function, replace(given, responses=(), baseline_responses=(), divergence=None))
        _assert_keys(first, found, f"with {name}")
    _assert_keys(first, _asked(function, _odd(given)), "for odd responses (empty, endless, broken)")
    _assert_same(first, _asked(function, given), "after edits were live it returned something else: it kept a state")


def check_labeller(function: Labeller, behavior: Behavior | None = None, *, device: str = "cpu") -> None:
    """A labeller gives one known label, or None, for every answer: also for an empty, a broken and a very long one, for
    one and for none; the same each time, and in whatever order and company the answers come."""
    asked = behavior or Behavior.load("demo:sealed")
    texts = (*ODD_TEXTS, _long_text(), "The bell is made of bronze.", "I can't help with that.")
    answers = Answers(asked, tuple(f"Question {index}?" for index in range(len(texts))), texts, device=device)
    first = _labels(function, answers)
    assert _labels(function, answers) == first, "a second call gave other labels"
    assert _labels(function, replace(answers, prompts=(), texts=())) == (), "no answers must give no labels"
    order = list(range(len(texts)))[::-1]
    turned = replace(
        answers, prompts=tuple(answers.prompts[each] for each in order), texts=tuple(texts[each] for each in order)
    )
    assert _labels(function, turned) == tuple(first[each] for each in order), "labels depend on the order of answers"
    alone = replace(answers, prompts=answers.prompts[-1:], texts=texts[-1:])
    assert _labels(function, alone) == first[-1:], "a label depends on which other answers there are"


@cache
def demo_subject() -> Subject:
    """The demo model, four target and four baseline prompts of its sealed subjects, and what it does on them."""
    model, behavior = load(MODEL_PATH, dtype="float32", device_map="cpu"), Behavior.load("demo:sealed")
    prompts = PromptSet(target=_prompts("sealed_tune"), baseline=_prompts("sealed_baseline_tune"))
    reference = Reference.measure(model, prompts.baseline, behavior, tokens=8)
    plain = Subject(model, behavior, prompts, reference, max_tokens=16)
    return replace(plain, responses=target_responses(plain), baseline_responses=baseline_responses(plain))


def _prompts(name: str) -> tuple[str, ...]:
    return tuple((PROMPTS_PATH / f"{name}.txt").read_text(encoding="utf-8").splitlines()[:4])


def _asked(function: Scorer, subject: Subject) -> Mapping[str, Any]:
    """What the scorer returns; nothing may be different afterwards."""
    model = subject.model.hf_model
    before, state = _condition(model), torch.get_rng_state()
    found: Any = function(subject)
    assert isinstance(found, Mapping), f"the scorer returned a {type(found).__name__}: return a dictionary"
    for what, now in _condition(model).items():
        assert now == before[what], f"the scorer {what}"
    assert torch.equal(torch.get_rng_state(), state), "the scorer used torch's global random numbers"
    _assert_json(found, "what the scorer returned")
    return found


def _condition(model: torch.nn.Module) -> dict[str, Any]:
    """What a scorer may not change, by what to say where it did."""
    return {
        "changed the model's weights": [(value._version, value.data_ptr()) for value in model.parameters()],
        "left hooks on the model": [
            (len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()
        ],
        "left the model in another mode": [module.training for module in model.modules()],
        "left gradients on the model": [value.grad is None for value in model.parameters()],
    }


def _edits(model: EditableModel) -> dict[str, Edit]:
    direction = torch.randn(model.hidden, generator=torch.Generator().manual_seed(1))
    return {
        "an edit that does nothing": Edit.empty(model.survey),
        "a random direction removed": Edit.project(model.survey, direction),
        "a model that an edit broke": 40.0 * Edit.project(model.survey, direction),
    }


def _odd(subject: Subject) -> Subject:
    """The subject with responses that no good model gives."""
    texts = (*ODD_TEXTS, _long_text())
    prompts = tuple(f"Question {index}?" for index in range(len(texts)))
    responses = tuple(Response(text, (0,), True) for text in texts)
    baseline = tuple(responses[index % len(responses)] for index in range(len(subject.prompts.baseline)))
    sides = replace(subject.prompts, target=prompts)
    return replace(subject, prompts=sides, responses=responses, baseline_responses=baseline)


def _long_text() -> str:
    draw = random.Random(0)
    return " ".join(f"{draw.choice('bdfgklmn')}{draw.choice('aeiou')}{draw.choice('rstv')}" for _ in range(LONG_WORDS))


def _labels(function: Labeller, answers: Answers) -> tuple[str | None, ...]:
    said: Any = function(answers)
    labels: Sequence[Any] = said.labels if isinstance(said, Verdicts) else said
    assert len(labels) == len(answers.texts), f"{len(labels)} labels for {len(answers.texts)} answers"
    wrong = [label for label in labels if label is not None and label not in LABELS]
    assert not wrong, f"the label {wrong[0]!r} is none of {', '.join(LABELS)}; None is for what cannot be told"
    if isinstance(said, Verdicts):
        _assert_json(said.details, "the details of the labeller")
    return tuple(labels)


def _assert_json(values: Any, what: str) -> None:
    try:
        json.dumps(values)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{what} is not made of JSON values: {error}") from error
    wrong = [key for key in _keys(values) if not isinstance(key, str)]
    assert not wrong, f"{what} has the key {wrong[0]!r}: keys are text"


def _assert_same(first: Mapping[str, Any], second: Mapping[str, Any], otherwise: str) -> None:
    assert json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True), otherwise


def _assert_keys(first: Mapping[str, Any], found: Mapping[str, Any], when: str) -> None:
    other = _numbers(found) ^ _numbers(first)
    assert not other, f"{when} the numbers have other keys ({', '.join(sorted(other))}): NaN is for what has no value"


def _keys(values: Any) -> list[Any]:
    if isinstance(values, Mapping):
        return [*values, *(key for inner in values.values() for key in _keys(inner))]
    return [key for inner in values for key in _keys(inner)] if isinstance(values, list | tuple) else []


def _numbers(values: Mapping[str, Any], before: str = "") -> set[str]:
    """The paths of all numbers, which is what a search can trade."""
    found: set[str] = set()
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{before}{key}.")
        elif isinstance(value, Real):
            found.add(f"{before}{key}")
    return found
