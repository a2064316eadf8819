"""Whether responses are in the language of their prompts, told by py3langid (Lui and Baldwin 2012)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import nan
from typing import Any

from excise.errors import MissingExtraError
from excise.evaluation.registry import Subject
from excise.evaluation.requested import offered
from excise.evaluation.responses import answers_in, baseline_responses, target_responses
from excise.evaluation.statistics import wilson

SURE = 0.8
"""Below this confidence a text's language is unknown."""
_SHORTEST = 12  # letters; below that a guess says little, unless each letter is a word of its own
_SHORTEST_DENSE = 4
_PART_OF = {"wuu": "zh", "yue": "zh", "nan": "zh", "lzh": "zh", "nb": "no", "nn": "no"}
"""Written alike as far as short texts tell."""
_DENSE = 0x2E80  # from here on: the scripts of East Asia


@offered("language")
def language(subject: Subject) -> dict[str, Any]:
    """For `target` and `baseline` responses: `other`, the share in another language than the prompt's, with its
    `interval`, over the `known`; how many are `unknown` (too short, or unclear), and `languages`, `[code, count]` each.

    A prompt that says its language (`prompt.language`, ISO 639-1) is believed. Raises `MissingExtraError`.
    """
    template, behavior = subject.model.template, subject.behavior
    found = {}
    for side, responses in (("target", target_responses(subject)), ("baseline", baseline_responses(subject))):
        prompts: tuple[str, ...] = getattr(subject.prompts, side)
        found[side] = compare(prompts, answers_in(responses, template, behavior))
    return found


def compare(prompts: Sequence[str], answers: Sequence[str]) -> dict[str, Any]:
    """What `language` says of one side."""
    spoken = [language_of(text) for text in answers]
    asked = [getattr(prompt, "language", None) or language_of(prompt) for prompt in prompts]
    pairs = [(one, other) for one, other in zip(asked, spoken, strict=True) if one and other]
    different = sum(str(one).lower()[:2] != other for one, other in pairs)
    return {
        "other": different / len(pairs) if pairs else nan,
        "interval": list(wilson(different, len(pairs))),
        "known": len(pairs),
        "unknown": len(answers) - len(pairs),
        "languages": [[code, count] for code, count in Counter(filter(None, spoken)).most_common()],
    }


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of a text's language; None where it is too short or unclear. Raises `MissingExtraError`."""
    letters = [character for character in text if character.isalpha()]
    dense = sum(ord(character) >= _DENSE for character in letters)
    if len(letters) < (_SHORTEST_DENSE if 2 * dense > len(letters) else _SHORTEST):
        return None
    found: Counter[str] = Counter()
    for code, confidence in _identifier().rank(text):
        found[_PART_OF.get(code, code)] += confidence
    ((code, confidence),) = found.most_common(1)
    return code if confidence >= SURE else None


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ModuleNotFoundError as error:
        raise MissingExtraError("py3langid", extra="language") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
