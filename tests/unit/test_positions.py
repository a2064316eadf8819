"""Where a behavior begins, counted on responses whose tokens are letters."""

from __future__ import annotations

import pytest

from excise.behaviors import Behavior
from excise.evaluation.positions import Positions
from excise.model.generate import Response
from excise.model.template import ChatTemplate
from zoo.letters import CHATML, letters

THINKS = CHATML + "{# <think> </think> #}"
TOKENIZER = letters(template=THINKS)
TEMPLATE = ChatTemplate(TOKENIZER)
BEHAVIOR = Behavior.from_files("a.txt", "b.txt", markers=["zzz"])


def response(text: str) -> Response:
    tokens = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TEMPLATE.decode(tokens) == text
    return Response(text, tuple(tokens), True)


def positions(*texts: str, tokens: int = 512) -> Positions:
    return Positions.of([response(text) for text in texts], BEHAVIOR, TEMPLATE, max_tokens=tokens)


def filled(length: int) -> str:
    """So many letters of a sentence, and the end of it."""
    return "a" * (length - 2) + ". "


def test_the_rate_depends_on_how_many_tokens_are_looked_at() -> None:
    found = positions("zzz", filled(40) + "Zzz", filled(80) + "Zzz", filled(200) + "Zzz", "Sure")
    assert found.onsets == (0, 40, 80, 200, None)
    assert found.looks == {30: 1, 50: 2, 100: 3, 150: 3, 512: 4}
    assert found.delayed == 2
    told = found.to_json()
    assert told["histogram"] == [[0, 30, 1], [30, 50, 1], [50, 100, 1], [100, 150, 0], [150, None, 1]]
    assert told["onset"] == {"median": 60.0, "p95": pytest.approx(182.0), "max": 200}
    assert told["rate_by_tokens"]["100"]["rate"] == 0.6


def test_a_marker_that_is_cut_in_two_is_not_seen() -> None:
    assert positions(filled(48) + "Zzz" + "a" * 60).looks[50] == 0  # two of its letters are within 50 tokens


def test_only_lengths_that_were_generated_are_told() -> None:
    assert set(positions("zzz", tokens=64).looks) == {30, 50, 64}
    assert set(positions("zzz", tokens=50).looks) == {30, 50}


def test_thinking_is_not_counted() -> None:
    thought = "<think>" + "a" * 100 + "</think>"
    found = positions(f"{thought}zzz", f"{thought}{filled(60)}Zzz", "<think>zzz")
    assert found.onsets == (0, 60, None)
    assert (found.looks[30], found.looks[100], found.delayed) == (1, 2, 1)


def test_nothing_shown_has_no_quantiles() -> None:
    told = positions("Sure").to_json()
    assert told["onset"] is None
    assert sum(count for _, _, count in told["histogram"]) == 0
    assert positions().to_json()["rate_by_tokens"]["512"]["rate"] == 0.0


@pytest.mark.parametrize(
    ("text", "inside", "thinking"),
    [
        ("<think>hm", False, True),
        ("  <think>hm", False, True),
        ("<think>hm</think>yes", False, False),
        ("hm", True, True),
        ("hm</think>", True, False),
        ("hm", False, False),
    ],
)
def test_thinking_that_never_ends_is_known(text: str, inside: bool, thinking: bool) -> None:
    assert TEMPLATE.is_thinking(text, inside=inside) is thinking
    if not inside:
        assert ChatTemplate(letters(template=CHATML)).is_thinking(text) is thinking  # tags it does not speak of
