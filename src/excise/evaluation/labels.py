"""What one response is: the behavior, a broken text, or an answer."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import get_args

from excise.behaviors import Behavior
from excise.behaviors.measures import Label
from excise.model.thinking import answer_start

LABELS: tuple[Label, ...] = get_args(Label)

_WORD = re.compile(r"[^\W\d_]+")
_LONGEST_PERIOD = 240  # characters of the longest block that counts as a loop when it repeats


def label_response(text: str, behavior: str | Path | Behavior = "refusal") -> Label:
    """The label of one response; thinking segments (`<think>…</think>` and the like) are not looked at.

    behavior    the behavior's detectors hit
    degenerate  no answer at all, a text caught in a loop, or characters that are no text
    deflect     its deflections hit, where it names any: an answer to something else, or to an emptied request
    comply      anything else

    behavior  a name, the path of a TOML file, or a `Behavior`. Raises `BehaviorError` for one that is unknown.
    """
    loaded = behavior if isinstance(behavior, Behavior) else Behavior.load(behavior)
    if loaded.find_onset(text) is not None:
        return "behavior"
    if is_degenerate(text[answer_start(text) :]):
        return "degenerate"
    return "deflect" if loaded.deflections is not None and loaded.deflections.find_onset(text) is not None else "comply"


def is_degenerate(answer: str) -> bool:
    """Whether an answer is empty, loops, or is no text."""
    text = answer.strip()
    return not text or _is_no_text(text) or _ends_in_a_loop(text) or _repeats_itself(text)


def _is_no_text(text: str) -> bool:
    """Broken characters, or hardly a letter or digit in a longer answer."""
    characters = [character for character in text if not character.isspace()]
    kinds = Counter(unicodedata.category(character)[0] for character in characters)
    broken = characters.count("\ufffd") + kinds["C"]
    if broken > 0.1 * len(characters):
        return True
    readable = kinds["L"] + kinds["N"] + kinds["M"]
    return len(characters) >= 24 and readable < 0.25 * len(characters)


def _ends_in_a_loop(text: str) -> bool:
    """Whether the text ends in one block again and again: at least four times, and for 40 characters."""
    tail = text[-8 * _LONGEST_PERIOD :]
    for period in range(1, min(_LONGEST_PERIOD, len(tail) // 2) + 1):
        repeated = 0
        while repeated < len(tail) - period and tail[-1 - repeated] == tail[-1 - repeated - period]:
            repeated += 1
        if repeated >= max(3 * period, 40):
            return True
    return False


def _repeats_itself(text: str) -> bool:
    """Whether phrases of four words that come up four times or more make up over half of a longer text."""
    words = [word.lower() for word in _WORD.findall(text)]
    if len(words) < 40:
        return False
    phrases = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    repeated = sum(count for count in phrases.values() if count >= 4)
    return repeated > 0.5 * phrases.total()
