"""Markers for a new behavior: the phrases that tell responses to target prompts from those to baseline prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from excise.behaviors.detectors import Detectors, answer_of

LONGEST = 5
"""Words of a marker at most."""

# A word; of scripts without blanks between words, a character.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+(?:'[^\W_]+)*")
_GAP = re.compile(r"[ ,;:—–-]{0,3}")
_PRIOR = 0.5  # Jeffreys': half a response with and half a one without, on each side
_CLEAR = 2.58  # standard errors of the log-odds ratio: one in a hundred by chance
_COST = 3.0  # a baseline response that is hit wrongly weighs as much as this many that are found


@dataclass(frozen=True)
class Marker:
    """A phrase, and the share of held-out responses to target and to baseline prompts that hold it."""

    text: str
    target: float
    baseline: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"marker": self.text, "target": self.target, "baseline": self.baseline}


@dataclass(frozen=True)
class Proposal:
    """Markers, best first, and the shares of held-out responses that hold any of them."""

    markers: tuple[Marker, ...]
    target: float
    baseline: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "markers": [marker.to_json() for marker in self.markers],
            "target": self.target,
            "baseline": self.baseline,
        }


def propose_markers(
    target: Sequence[tuple[str, str]],
    baseline: Sequence[tuple[str, str]],
    *,
    held_out: tuple[Sequence[str], Sequence[str]],
    limit: int = 6,
) -> Proposal:
    """Few phrases that most responses to target prompts hold, and hardly any to baseline prompts.

    Phrases are 1 to 5 words as they stand in responses. Those whose log-odds ratio between the sides is clear of chance
    are taken greedily: next the one that finds most responses which none found yet. What does not separate held-out
    responses is left out again, and so are phrases that repeat the prompt or name the topic of target prompts.

    target, baseline  (prompt, response) pairs
    held_out          other responses to target and to baseline prompts
    """
    names, shows = _table([answer_of(response) for _, response in (*target, *baseline)], phrases)
    on_target, on_baseline = shows[: len(target)], shows[len(target) :]
    clear = _log_odds(on_target, on_baseline) > _CLEAR
    topic = _topic(target, baseline)
    fit = [
        is_clear and not topic & set(_WORD.findall(name)) and not _echoes(name, target)
        for name, is_clear in zip(names, clear, strict=True)
    ]
    kept = np.flatnonzero(fit)
    chosen = _cover(names[kept], on_target[:, kept], on_baseline[:, kept], limit)
    checked = [
        marker for marker in (_checked(text, held_out) for text in chosen) if marker.target > 3 * marker.baseline
    ]
    if not checked:
        return Proposal((), 0.0, 0.0)
    together = Detectors(markers=tuple(marker.text for marker in checked))
    rates = [_rate(together, side) for side in held_out]
    return Proposal(tuple(checked), rates[0], rates[1])


def phrases(text: str) -> Iterator[str]:
    """Every run of 1 to 5 words in a line that nothing but blanks, commas and dashes part, in lower case."""
    folded = text.lower().replace("’", "'")
    words = list(_WORD.finditer(folded))
    for first, start in enumerate(words):
        for last in range(first, min(first + LONGEST, len(words))):
            if last > first and not _GAP.fullmatch(folded[words[last - 1].end() : words[last].start()]):
                break
            yield folded[start.start() : words[last].end()]


def _table(texts: Sequence[str], pieces: Callable[[str], Iterable[str]]) -> tuple[Any, Any]:
    """The pieces of all texts, and which text holds which: booleans of shape (texts, pieces)."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(analyzer=lambda text: list(pieces(text)), binary=True)
    try:
        held = counter.fit_transform(texts).toarray().astype(bool)
    except ValueError:  # nothing in any of them
        return np.array([], dtype=str), np.zeros((len(texts), 0), dtype=bool)
    return counter.get_feature_names_out(), held


def _topic(target: Sequence[tuple[str, str]], baseline: Sequence[tuple[str, str]]) -> set[str]:
    """The words that tell the prompts of the two sides apart: they say what is asked, not how it is answered."""
    prompts = [prompt.lower().replace("’", "'") for prompt, _ in (*target, *baseline)]
    words, held = _table(prompts, _WORD.findall)
    clear = _log_odds(held[: len(target)], held[len(target) :]) > _CLEAR
    return set(words[clear].tolist())


def _log_odds(target: Any, baseline: Any) -> Any:
    """For each phrase the log-odds ratio of the sides, in standard errors."""
    with_target, with_baseline = target.sum(axis=0) + _PRIOR, baseline.sum(axis=0) + _PRIOR
    without_target = len(target) - with_target + 2 * _PRIOR
    without_baseline = len(baseline) - with_baseline + 2 * _PRIOR
    ratio = np.log(with_target / without_target) - np.log(with_baseline / without_baseline)
    error = np.sqrt(1 / with_target + 1 / without_target + 1 / with_baseline + 1 / without_baseline)
    return ratio / error


def _echoes(phrase: str, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether the phrase is, in most responses that hold it, in the prompt too."""
    holding = [prompt.lower().replace("’", "'") for prompt, response in pairs if phrase in response.lower()]
    return sum(phrase in prompt for prompt in holding) * 2 > len(holding)


def _cover(names: Any, target: Any, baseline: Any, limit: int) -> list[str]:
    """Phrases, greedily: next the one that finds most new target responses, less what it hits wrongly."""
    chosen: list[str] = []
    found, wrong = np.zeros(len(target), bool), np.zeros(len(baseline), bool)
    weight = _COST * len(target) / max(len(baseline), 1)
    least = max(2.0, 0.02 * len(target))
    lengths = np.array([len(name.split()) for name in names])
    while len(chosen) < limit and len(names):
        gain = (target & ~found[:, None]).sum(axis=0) - weight * (baseline & ~wrong[:, None]).sum(axis=0)
        if gain.max() < least:
            break
        best = np.flatnonzero(gain == gain.max())
        pick = best[np.argmax(np.minimum(lengths[best], 3))]  # of equal ones rather three words than one
        chosen.append(str(names[pick]))
        found, wrong = found | target[:, pick], wrong | baseline[:, pick]
    return chosen


def _checked(text: str, held_out: tuple[Sequence[str], Sequence[str]]) -> Marker:
    detectors = Detectors(markers=(text,))
    return Marker(text, _rate(detectors, held_out[0]), _rate(detectors, held_out[1]))


def _rate(detectors: Detectors, responses: Sequence[str]) -> float:
    return sum(detectors.find_onset(text) is not None for text in responses) / max(len(responses), 1)
