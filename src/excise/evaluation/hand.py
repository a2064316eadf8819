"""Labels by hand, blind: which responses of a run are looked at, what was said of them, and who agrees with it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from excise.behaviors import Behavior
from excise.behaviors.measures import Label
from excise.config import RunConfig
from excise.errors import InputError
from excise.evaluation.agreement import cohens_kappa
from excise.evaluation.labelling import Answers, Labeller, label_all
from excise.evaluation.rate import Rate
from excise.model.thinking import answer_start
from excise.progress import Progress, silent
from excise.runs import write_json

Side = Literal["target", "baseline"]
SIDES: tuple[Side, ...] = get_args(Side)
SOURCES = ("before", "after")
"""The model without and with the edit, as `responses.jsonl` calls them."""
_FILE = "hand-labels.json"
_HINT = "give the directory of a run that has come to its report (`excise run`, `excise demo`)"


@dataclass(frozen=True)
class Item:
    """One answer to look at; `sources` says whose it is (both, where they answered alike), and is not to be shown."""

    key: str
    prompt: str
    answer: str
    sources: tuple[str, ...]


def read_behavior(run: Path) -> Behavior:
    """The behavior that a run removed, by its manifest. Raises `InputError` where there is no run."""
    path = run / "manifest.json"
    try:
        asked = dict(json.loads(path.read_text(encoding="utf-8"))["config"])
        asked.pop("command", None)
        config = RunConfig.model_validate(asked)
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise InputError(f"{run} is not a run of excise that can be read", hint=_HINT) from error
    return Behavior.from_config(config)


def read_rows(run: Path, side: Side) -> list[dict[str, str]]:
    """The responses of a run's newest report: `prompt`, `before` and `after` each. Raises `InputError`."""
    files = sorted((run / "stages").glob("report-*/responses.jsonl"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise InputError(f"{run} holds no responses", hint=_HINT)
    try:
        rows = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [{key: str(row[key]) for key in ("prompt", *SOURCES)} for row in rows if row["side"] == side]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{files[-1]} is not what excise writes", hint=_HINT) from error
    if not found:
        raise InputError(f"{files[-1]} holds no responses to {side} prompts", hint="choose the other side: --side")
    return found


def sample(rows: Sequence[Mapping[str, str]], *, count: int, seed: int = 0) -> list[Item]:
    """At most `count` answers in random order: of each prompt that is drawn, both models', as far as they differ.

    Thinking is left out, as scorers do. The same rows, count and seed give the same items; a larger count holds the
    prompts of a smaller one.
    """
    draw = random.Random(seed)
    order = list(range(len(rows)))
    draw.shuffle(order)
    chosen: list[Item] = []
    for index in order:
        items = _items(rows[index])
        if len(chosen) + len(items) > count:
            break
        chosen += items
    draw.shuffle(chosen)
    return chosen


def _items(row: Mapping[str, str]) -> list[Item]:
    by_answer: dict[str, list[str]] = {}
    for source in SOURCES:
        text = row[source]
        by_answer.setdefault(text[answer_start(text) :], []).append(source)
    prompt = row["prompt"]
    return [
        Item(hashlib.sha256(f"{prompt}\0{text}".encode()).hexdigest()[:16], prompt, text, tuple(sources))
        for text, sources in by_answer.items()
    ]


class HandLabels:
    """What was said so far, in a file of the run: written after every key, so that nothing is lost.

    It holds hashes and labels, no text.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / _FILE
        self.labels: dict[str, Label] = {}
        if self.path.exists():
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))["labels"]
                self.labels = {str(key): label for key, label in found.items() if label in get_args(Label)}
            except (ValueError, KeyError, AttributeError) as error:
                raise InputError(
                    f"{self.path} cannot be read", hint="it holds labels by hand: mend it, or move it away"
                ) from error

    def put(self, item: Item, label: Label) -> None:
        """Say what an answer is. Raises `DiskFullError`."""
        self.labels[item.key] = label
        self._write()

    def drop(self, item: Item) -> None:
        """Take back what was said of an answer. Raises `DiskFullError`."""
        if self.labels.pop(item.key, None) is not None:
            self._write()

    def of(self, items: Sequence[Item]) -> list[Label | None]:
        """What was said of each; None where nothing was."""
        return [self.labels.get(item.key) for item in items]

    def _write(self) -> None:
        write_json(self.path, {"labels": self.labels})


def compare(
    items: Sequence[Item],
    hand: Sequence[Label | None],
    behavior: Behavior,
    labellers: Mapping[str, Labeller],
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The rates by hand before and after the edit, and each labeller's agreement with the hand, as JSON values.

    `hand.before`, `hand.after`: as `Rate.to_json`; per labeller its `rate` on the same answers, `kappa` on whether the
    behavior is shown, and `kappa_labels` on all four labels. Only answers with a label by hand count.
    """
    known = [(item, label) for item, label in zip(items, hand, strict=True) if label is not None]
    given = [label for _, label in known]
    answers = Answers(
        behavior, tuple(item.prompt for item, _ in known), tuple(item.answer for item, _ in known), progress=progress
    )
    verdicts = label_all(answers, labellers).verdicts if known else {}
    return {
        "labelled": len(known),
        "remaining": len(items) - len(known),
        "hand": {
            source: Rate.of([label for item, label in known if source in item.sources]).to_json() for source in SOURCES
        },
        "scorers": {
            name: {
                **found.to_json(),
                "kappa": cohens_kappa(given, found.labels, behavior_only=True).to_json(),
                "kappa_labels": cohens_kappa(given, found.labels).to_json(),
            }
            for name, found in verdicts.items()
        },
    }
