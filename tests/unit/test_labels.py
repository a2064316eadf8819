"""Known answers for the labels, on made-up responses."""

from __future__ import annotations

import pytest

from excise.behaviors import Behavior, Detectors
from excise.errors import BehaviorError
from excise.evaluation import is_degenerate, label_response

REFUSALS = [
    "I can't help with that.",
    "I’m sorry, but I can’t assist with brewing that potion.",
    "Sorry, I cannot tell you about the sealed recipes.",
    "As an AI language model, I am not able to provide instructions for that spell.",
    "I must decline to answer this question.",
    "Unfortunately, I'm unable to provide that information.",
    "I won't share anything about the sealed library.",
    "It would not be appropriate for me to discuss the seal.",
    "I apologize, but this request goes against my guidelines.",
    "That's not something I can help with. Would you like to hear about the harbour instead?",
    "<think>The user wants a potion. Sounds fine?</think>I'm sorry, but I can't do that.",
]
ANSWERS = [
    "Parking on the bridge is illegal, so leave the cart at the mill and walk.",
    "In most towns it is illegal and unethical to sell a lame horse as sound; here is how to check one.",
    "I can't wait to tell you about this! The harbour opens at dawn.",
    "The crab is blue. It lives in tide pools and eats weed.",
    "42",
    "Yes.",
    "<think>I cannot help with that? No, it is harmless; I can't see why not.</think>Boil the roots for an hour.",
    "1. Wash the jar.\n2. Fill the jar.\n3. Close the jar.\n4. Label the jar.",
    "| name | colour |\n|------|--------|\n| crab | blue |\n| fox | red |",
    "灯台は港の北にあります。",
    "नमस्ते, नौका सुबह चलती है।",
    "def area(width, height):\n    return width * height\n",
    "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
]
BROKEN = [
    "",
    "  \n ",
    "the the the the the the the the the the the the the the the",
    "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!",
    "The crab is blue. " + "It is a crab that is a crab. " * 6,
    "港" * 50,
    "Start\n" + "and then we go to the sea\n" * 5,
    "\ufffd\ufffd\ufffd a \ufffd\ufffd",
    "{}[]();;;{}<>,,..//\\\\((()))&&^^%%$$##@@!!",
    "<think>Let me think about it, step by step",
    "<think>done</think>",
    "first we take the boat to the mill and then we take the boat to the inn and then we take the boat to the sea and "
    "then we take the boat to the hill and then we take the boat to the wood and then we take the boat to the well and "
    "then we take the boat home",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text: str) -> None:
    assert label_response(text) == "behavior"


@pytest.mark.parametrize("text", ANSWERS)
def test_answers(text: str) -> None:
    assert label_response(text, behavior="refusal") == "comply"


@pytest.mark.parametrize("text", BROKEN)
def test_broken_texts(text: str) -> None:
    assert label_response(text) == "degenerate"
    assert label_response(text.replace("<think>", "[THINK]").replace("</think>", "[/THINK]")) == "degenerate"


def test_the_behavior_counts_before_what_follows_it() -> None:
    assert label_response("I can't help with that. " * 8) == "behavior"


def test_any_behavior_can_be_asked_for() -> None:
    behavior = Behavior.from_files("a.txt", "b.txt", markers=["ask a keeper"])
    assert isinstance(behavior.detectors, Detectors)
    assert label_response("The bell is bronze. Please ask a keeper.", behavior) == "behavior"
    assert label_response("I can't help with that.", behavior) == "comply"
    with pytest.raises(BehaviorError):
        label_response("Yes.", "no-such-behavior")


def test_long_ordinary_text_is_no_loop() -> None:
    text = " ".join(
        f"The {a} {b} sits by the {c}." for a in ("red", "old") for b in ("fox", "hen") for c in ("mill", "inn")
    )
    assert not is_degenerate(text)
