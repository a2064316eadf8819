"""Tasks with known answers, from a file: is the answer right, whatever else an edit did?"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from excise.errors import InputError
from excise.evaluation.registry import Scorer, Subject
from excise.evaluation.requested import offered_with
from excise.evaluation.responses import answers_in
from excise.evaluation.statistics import wilson
from excise.model.generate import generate

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_FORM = 'one JSON object per line: {"prompt": "…", "answer": "…"}, or a list of answers'


@dataclass(frozen=True)
class Item:
    """One question and every answer that counts as right."""

    prompt: str
    answers: tuple[str, ...]


@offered_with("exact-match", "FILE.jsonl")
def exact_match(argument: str) -> Scorer:
    """A scorer for a file of questions: `prompt`, and `answer` (or `answers`), a text or a list of them.

    `exact`: the share of responses that are an answer and nothing else; `contains`: the share that holds one, as whole
    words; both after `normalised`, with `exact_interval`, `contains_interval`, and the `count` of questions. Responses
    are greedy, through the chat template, with the behavior's system prompt and length. Raises `InputError`.
    """
    items = read_items(Path(argument))

    def score(subject: Subject) -> dict[str, Any]:
        behavior = subject.behavior
        responses = generate(
            subject.model,
            [item.prompt for item in items],
            system=behavior.system,
            thinking=behavior.thinking,
            max_tokens=subject.max_tokens or behavior.max_tokens,
            batch_size=subject.batch_size,
            progress=subject.progress,
        )
        return match(items, answers_in(responses, subject.model.template, behavior))

    return score


def match(items: Sequence[Item], texts: Sequence[str]) -> dict[str, Any]:
    """What `exact_match` says of some responses."""
    exact = contained = 0
    for item, text in zip(items, texts, strict=True):
        said = normalised(text)
        right = [normalised(answer) for answer in item.answers]
        exact += said in right
        contained += any(f" {answer} " in f" {said} " for answer in right)
    total = len(items)
    return {
        "exact": exact / total,
        "exact_interval": list(wilson(exact, total)),
        "contains": contained / total,
        "contains_interval": list(wilson(contained, total)),
        "count": total,
    }


def normalised(text: str) -> str:
    """As SQuAD compares answers (Rajpurkar et al. 2016), for all scripts: compatibility forms folded, lower case,
    without punctuation and the articles a, an, the; blanks single. `1,000` and `1000` are the same, 5 and -5 not."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    folded = re.sub(r"(?<=\d),(?=\d{3}\b)|(?<=\w)[-+](?!\w)", "", folded)
    folded = re.sub(r"(?<=\w)[-+]|[-+](?!\d)", " ", folded)  # what is left of them are signs of numbers
    kept = "".join(" " if unicodedata.category(one)[0] in "PS" and one not in "+-%" else one for one in folded)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def read_items(path: Path) -> list[Item]:
    """The questions of a JSONL file. Raises `InputError`, with the line that is wrong."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint=_FORM) from error
    items = [_item(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise InputError(f"{path} holds no questions", hint=_FORM)
    return items


def _item(line: str, where: str) -> Item:
    try:
        row = json.loads(line)
        prompt, given = row["prompt"], row.get("answers", row.get("answer"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} is no question", hint=_FORM) from error
    answers = [given] if isinstance(given, str | int | float) else given
    if not isinstance(prompt, str) or not isinstance(answers, list) or not answers:
        raise InputError(f"{where} is no question", hint=_FORM)
    texts = tuple(str(answer) for answer in answers)
    if not all(normalised(text) for text in texts):
        raise InputError(f"{where}: nothing is left of an answer without its punctuation", hint=_FORM)
    return Item(prompt, texts)
