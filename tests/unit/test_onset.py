"""The forecast of the behavior rate from one forward pass."""

from __future__ import annotations

import pytest
import torch

from excise import EditableModel, ExciseError
from excise.behaviors import Behavior
from excise.evaluation import Onset
from excise.model.generate import Response
from excise.model.onset import onset_token
from zoo.letters import CHATML, letters
from zoo.tiny import build

PROMPTS = ["Hello there", "What is it?", "A story about a fox"]
REFUSES = Behavior.from_files("a.txt", "b.txt", markers=["I cannot"])
DISCLAIMS = Behavior.from_files("a.txt", "b.txt", markers=["ask a keeper"])
TEXTS = ["I cannot tell.", "Sure. It is blue. Please ask a keeper.", "It is red."]


@pytest.fixture(scope="module")
def model() -> EditableModel:
    return EditableModel(build("llama", spread=2.0), letters(template=CHATML))


def respond(model: EditableModel, text: str) -> Response:
    return Response(text, tuple(model.tokenizer(text, add_special_tokens=False)["input_ids"]), True)


def test_the_onset_is_found_at_the_start_and_at_the_end(model: EditableModel) -> None:
    refusal, disclaimer, answer = (respond(model, text) for text in TEXTS)
    assert onset_token(refusal, REFUSES, model.template) == 0
    assert onset_token(disclaimer, DISCLAIMS, model.template) == TEXTS[1].index("Please")
    assert onset_token(answer, REFUSES, model.template) is None
    thinking = respond(model, "<think>I cannot see why not.</think>\nSure. I cannot tell.")
    assert onset_token(thinking, REFUSES, model.template) == thinking.text.index("I cannot tell")


def test_rows_hold_the_prompt_and_the_response_up_to_the_onset(model: EditableModel) -> None:
    responses = [respond(model, text) for text in TEXTS]
    onset = Onset.measure(model, PROMPTS, DISCLAIMS, responses)
    prompt = model.template.encode(PROMPTS[1:2])[0]
    assert onset.rows == ((*prompt, *responses[1].tokens[: TEXTS[1].index("Please")]),)
    assert onset.tokens == (model.tokenizer.convert_tokens_to_ids("P"),)
    assert onset.prompts == (1,)
    assert onset.total == 3


def test_the_margin_is_the_log_odds_of_the_onset_tokens(model: EditableModel) -> None:
    responses = [respond(model, text) for text in ("I cannot tell.", "Hm, I cannot tell.", "Sure. I cannot tell.")]
    onset = Onset.measure(model, PROMPTS, REFUSES, responses)
    assert len(onset.tokens) == 2
    margin = onset.margin(model)
    for row, value in zip(onset.rows, margin, strict=True):
        probability = model.hf_model(torch.tensor([row])).logits[0, -1].softmax(dim=-1)[list(onset.tokens)].sum()
        torch.testing.assert_close(value, torch.logit(probability), atol=1e-3, rtol=1e-3)
    assert onset.estimated_rate(model) == (margin > 0).sum().item() / 3
    likely = Onset(onset.rows, tuple(range(200)), onset.prompts, total=4)
    assert likely.estimated_rate(model) == (likely.margin(model) > 0).sum().item() / 4


def test_a_model_that_never_shows_it(model: EditableModel) -> None:
    onset = Onset.measure(model, PROMPTS, REFUSES, [respond(model, "It is red.")] * 3)
    assert onset.margin(model).shape == (0,)
    assert onset.estimated_rate(model) == 0.0
    with pytest.raises(ExciseError, match="responses"):
        Onset.measure(model, PROMPTS, REFUSES, [])
