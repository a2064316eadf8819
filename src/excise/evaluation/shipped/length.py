"""How long responses are and how much they repeat themselves: what an edit that breaks a model shows first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import nan
from typing import Any

from excise.evaluation.labels import is_degenerate
from excise.evaluation.registry import Subject
from excise.evaluation.requested import offered
from excise.evaluation.responses import answers_in, baseline_responses, target_responses
from excise.model.generate import Response

_WORD = re.compile(r"\w+")
_PHRASE = 4


@offered("length")
def length(subject: Subject) -> dict[str, Any]:
    """For `target` and `baseline` responses: `tokens`, their mean number; `finished`, the share that ended by
    themselves; `unanswered`, the share whose answer is empty (thinking that never ends among them); `degenerate`, the
    share that is empty, loops or is no text; `repetition`, the mean share of four-word phrases that came up before.
    """
    template, behavior = subject.model.template, subject.behavior
    found = {}
    for side, responses in (("target", target_responses(subject)), ("baseline", baseline_responses(subject))):
        found[side] = _described(responses, answers_in(responses, template, behavior))
    return found


def repetition(text: str) -> float:
    """The share of four-word phrases of a text that came up before in it: 0 for none, near 1 for a loop."""
    words = [word.lower() for word in _WORD.findall(text)]
    phrases = Counter(tuple(words[start : start + _PHRASE]) for start in range(len(words) - _PHRASE + 1))
    return 1 - len(phrases) / phrases.total() if phrases else 0.0


def _described(responses: Sequence[Response], answers: Sequence[str]) -> dict[str, float]:
    return {
        "tokens": _mean([float(len(response.tokens)) for response in responses]),
        "finished": _mean([float(response.finished) for response in responses]),
        "unanswered": _mean([float(not text.strip()) for text in answers]),
        "degenerate": _mean([float(is_degenerate(text)) for text in answers]),
        "repetition": _mean([repetition(text) for text in answers]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan
