"""Where a response stops thinking and begins to answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAMED = re.compile(r"</([A-Za-z_:]*(?:think|thought|reason)[A-Za-z_:]*)>|\[/([A-Z_]*THINK[A-Z_]*)\]")
_CHANNEL = "<|channel|>"


@dataclass(frozen=True)
class ThinkingTags:
    """The pair of texts a model puts around its reasoning.

    opening, closing  the tags themselves
    empty             what closes the thinking in a prompt: written after the assistant's header, it makes the model
                      answer at once
    """

    opening: str
    closing: str
    empty: str

    def answer_start(self, text: str, *, inside: bool = False) -> int:
        """Index of the first character of `text` after its thinking; its length where the thinking never ends.

        inside  the prompt had opened the thinking already, so `text` begins within it
        """
        closed = text.rfind(self.closing)
        if closed >= 0:
            return _skip_space(text, closed + len(self.closing))
        return len(text) if self.is_open(text, inside=inside) else 0

    def is_open(self, text: str, *, inside: bool = False) -> bool:
        """Whether `text` is thinking that never ends. `inside` as for `answer_start`."""
        return self.closing not in text and (inside or text.lstrip().startswith(self.opening))


THINK = ThinkingTags("<think>", "</think>", "<think>\n\n</think>\n\n")
COMMON_TAGS = (
    THINK,
    *(ThinkingTags(f"<{name}>", f"</{name}>", f"<{name}>\n\n</{name}>\n\n") for name in ("thinking", "thought")),
    ThinkingTags("<reasoning>", "</reasoning>", "<reasoning>\n\n</reasoning>\n\n"),
    ThinkingTags("[THINK]", "[/THINK]", "[THINK][/THINK]"),
)


def tags_in_template(source: str) -> ThinkingTags | None:
    """The thinking tags that a chat template's source speaks of, or None."""
    if _CHANNEL in source and "analysis" in source and "final" in source:
        final = f"{_CHANNEL}final<|message|>"
        return ThinkingTags(f"{_CHANNEL}analysis<|message|>", final, final)
    if found := _NAMED.search(source):
        name, bracketed = found.groups()
        opening = f"<{name}>" if name else f"[{bracketed}]"
        gap = "\n\n" if name else ""
        return ThinkingTags(opening, found.group(0), f"{opening}{gap}{found.group(0)}{gap}")
    return None


def answer_start(text: str) -> int:
    """Index where the answer begins in the response of an unknown model: after any common thinking segment."""
    return max(tags.answer_start(text) for tags in COMMON_TAGS)


def is_open(text: str) -> bool:
    """Whether the response of an unknown model is thinking, in any common segment, that never ends."""
    return any(tags.is_open(text) for tags in COMMON_TAGS)


def _skip_space(text: str, index: int) -> int:
    while index < len(text) and text[index].isspace():
        index += 1
    return index
