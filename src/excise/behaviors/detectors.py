"""Detectors: whether a response shows the behavior, and where the sentence that shows it begins."""

from __future__ import annotations

import re
from functools import cached_property

from pydantic import BaseModel, ConfigDict, Field, field_validator

# One character for one character, so that an index into the folded text is an index into the response.
_FOLD = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "´": "'", "`": "'", "“": '"', "”": '"', "\u00a0": " "})
_THINKING_END = re.compile(r"</(?:think(?:ing)?|thought|reasoning)>|\[/THINK\]", re.IGNORECASE)
_THINKING_START = re.compile(r"\s*(?:<(?:think(?:ing)?|thought|reasoning)>|\[THINK\])", re.IGNORECASE)
# "e.g." and the like end no sentence: what follows the full stop must look like a beginning.
_SENTENCE_END = re.compile(r"[.!?:]['\")*_]*\s+(?=[^a-z\s])|\n\s*|[。！？]\s*")


class Detectors(BaseModel):
    """How to tell from a response that the behavior is shown. One hit of anything is enough; case never matters.

    markers   phrases, found as they are
    patterns  regular expressions; `\\A` is the start of the answer, curly quotes read as straight ones
    window    how many characters from the start of the answer are looked at; None: all of it

    What a model thinks before it answers is not looked at: with a closed thinking block the answer starts after it, and
    a response that never leaves the block shows nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    markers: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    window: int | None = Field(default=None, gt=0)

    @field_validator("markers")
    @classmethod
    def _markers_hold_text(cls, markers: tuple[str, ...]) -> tuple[str, ...]:
        if any(not marker.strip() for marker in markers):
            raise ValueError("a marker is empty: every response would show the behavior")
        return markers

    @field_validator("patterns")
    @classmethod
    def _patterns_compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise ValueError(f"the pattern {pattern!r} is not a regular expression ({error})") from error
            if compiled.search("") is not None:
                raise ValueError(
                    f"the pattern {pattern!r} matches nothing at all: every response would show the behavior"
                )
        return patterns

    def find_onset(self, text: str) -> int | None:
        """Index into `text` where the sentence with the first hit begins; None where the behavior is not shown."""
        folded = text.translate(_FOLD)
        start = _answer_start(folded)
        if start is None:
            return None
        answer = folded[start:] if self.window is None else folded[start : start + self.window]
        hits = [match.start() for match in (regex.search(answer) for regex in self._regexes) if match is not None]
        if not hits:
            return None
        ends = [match.end() for match in _SENTENCE_END.finditer(answer, 0, min(hits) + 1) if match.end() <= min(hits)]
        return start + (ends[-1] if ends else 0)

    @cached_property
    def _regexes(self) -> tuple[re.Pattern[str], ...]:
        phrases = tuple(re.escape(marker.strip().translate(_FOLD)) for marker in self.markers)
        return tuple(re.compile(pattern, re.IGNORECASE) for pattern in (*phrases, *self.patterns))


def answer_of(text: str) -> str:
    """A response without the thinking before its answer; empty where the thinking never ends."""
    start = _answer_start(text)
    return "" if start is None else text[start:]


def _answer_start(text: str) -> int | None:
    """Where the answer begins: after thinking and blanks. None where the thinking never ends."""
    ends = [match.end() for match in _THINKING_END.finditer(text)]
    if not ends and _THINKING_START.match(text):
        return None
    start = ends[-1] if ends else 0
    return start + len(text[start:]) - len(text[start:].lstrip())
