"""`Prompt`: what the user says last, and what comes before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Turn(NamedTuple):
    """One earlier message of a conversation: who spoke (`user` or `assistant`), and what."""

    role: str
    content: str


class Prompt(str):
    """A user's turn as a string, with what comes before it and what is known of it.

    turns     earlier messages, oldest first; the last one is not the user's
    system    system prompt of this prompt alone; None: the behavior's
    category  what kind of prompt it is, for results per category
    language  which language it is in, for results per language

    It is the string of the last turn wherever a string is asked for. Two prompts are equal when text, turns and system
    prompt are; a prompt without turns and system prompt equals the plain string. What makes a string of it (slices,
    `strip`, `+`) loses the rest; `changed` keeps it.
    """

    turns: tuple[Turn, ...]
    system: str | None
    category: str | None
    language: str | None

    def __new__(
        cls,
        text: str,
        *,
        turns: Sequence[Sequence[str]] = (),
        system: str | None = None,
        category: str | None = None,
        language: str | None = None,
    ) -> Prompt:
        """`turns` are (role, content) pairs."""
        prompt = super().__new__(cls, text)
        prompt.turns = tuple(Turn(*turn) for turn in turns)
        prompt.system = system
        prompt.category = category
        prompt.language = language
        return prompt

    @classmethod
    def of(cls, text: str) -> Prompt:
        """The string as a prompt; a prompt as it is."""
        return text if isinstance(text, Prompt) else cls(text)

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> Prompt:
        """What `to_json` gave."""
        if isinstance(value, str):
            return cls(value)
        known = {key: value[key] for key in ("turns", "system", "category", "language") if key in value}
        return cls(value["prompt"], **known)

    def to_json(self) -> dict[str, Any]:
        """`{"prompt": text}`, with `turns`, `system`, `category` and `language` where there are any."""
        extra = {key: value for key, value in self._about().items() if value}
        return {"prompt": str(self), **extra}

    def changed(self, text: str | None = None, *, system: str | None = None) -> Prompt:
        """The same with another text, or another system prompt."""
        about = self._about() | ({} if system is None else {"system": system})
        return Prompt(str(self) if text is None else text, **about)

    @property
    def context(self) -> tuple[tuple[Turn, ...], str | None]:
        """What comes before the text: earlier turns and system prompt."""
        return (self.turns, self.system)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        context = other.context if isinstance(other, Prompt) else ((), None)
        return str.__eq__(self, other) and self.context == context

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return str.__hash__(self) if self.context == ((), None) else hash((str(self), self.context))

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        return ((str(self),), self._about())

    def _about(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("turns", "system", "category", "language")}


def normalised(prompt: str) -> str:
    """What makes two prompts the same: their words, whatever the case and the blanks, after the same conversation.

    A system prompt of its own is part of it: the same words under two of them are two prompts.
    """
    before = [turn.content for turn in prompt.turns] if isinstance(prompt, Prompt) else []
    system = prompt.system if isinstance(prompt, Prompt) else None
    words = "\x1f".join(" ".join(text.casefold().split()) for text in (*before, str(prompt)))
    return words if system is None else f"{' '.join(system.casefold().split())}\x1e{words}"


def words_of(prompt: str) -> str:
    """All that is said up to the answer, in lower case: what near-duplicates are looked for in."""
    before = [turn.content for turn in prompt.turns] if isinstance(prompt, Prompt) else []
    return " ".join("\n".join([*before, str(prompt)]).casefold().split())
