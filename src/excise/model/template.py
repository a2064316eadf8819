"""Prompts as the model was trained to see them: its own chat template, probed for what it supports."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from excise.behaviors.prompt import Prompt
from excise.errors import ModelError
from excise.model.thinking import ThinkingTags, is_open, tags_in_template

SystemRole = Literal["native", "folded", "omitted"]
Message = dict[str, Any]

# Words no template, tokenizer or trimming filter changes.
_USER, _SYSTEM, _REPLY = "zebra", "quartz", "violin"
_SWITCHES = ("enable_thinking", "thinking", "think", "enable_reasoning", "reasoning")
_RENDER_ERRORS = (TemplateError, ValueError, TypeError, KeyError, IndexError, AttributeError)


class ChatTemplate:
    """How a user's turn, with what came before it and a system prompt, becomes the text the model continues.

    The model's own template is rendered to text and tokenised without added special tokens, exactly as
    `apply_chat_template(tokenize=True)` of Transformers does, so nothing is doubled. What the template supports is
    found by rendering, never assumed: an option that leaves the text as it was does not count as supported.

    system_role  "native", "folded" into the user turn, or "omitted"
    switch       name of the template's own thinking switch, if it has one
    tags         the thinking tags the template speaks of, if any
    plain        the tokenizer has no template; "User: …" and "Assistant:" stand in
    warnings     what the user should know about all this
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        source = _source(tokenizer)
        self.plain = source is None
        self.tags: ThinkingTags | None = tags_in_template(source or "")
        self._parts = False
        self.switch: str | None = None
        self.system_role: SystemRole = "native"
        if source is not None:
            self._parts = self._needs_parts()
            self.system_role = self._probe_system()
            self.switch = self._probe_switch()
        self.warnings: tuple[str, ...] = tuple(self._collect_warnings())

    def render(self, prompt: str, *, system: str | None = None, thinking: bool = False) -> str:
        """The text up to where the model's answer begins, special tokens included.

        prompt    the turns before it (`Prompt.turns`) come first, and its own system prompt stands in for `system`
        thinking  False closes the thinking segment of models that have one; True leaves it to the model
        """
        messages = self._messages(Prompt.of(prompt), system)
        if self.plain:
            return self._render_plain(messages)
        options = {self.switch: thinking} if self.switch else {}
        text = self._render(messages, **options)
        return text if thinking else self._close_thinking(text)

    def encode(self, prompts: Sequence[str], *, system: str | None = None, thinking: bool = False) -> list[list[int]]:
        """Token ids of each rendered prompt: no special token is added, and the first one is never doubled."""
        texts = [self.render(prompt, system=system, thinking=thinking) for prompt in prompts]
        return [self._without_doubled_bos(list(ids)) for ids in self._tokenise(texts)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens without special tokens; thinking tags stay readable even if they are special."""
        return self.decode_batch([tokens])[0]

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """`decode` for many rows."""
        lists = [list(row) for row in rows]
        texts: list[str] = self.tokenizer.batch_decode(lists, skip_special_tokens=True)
        if not self._special_tags:
            return texts
        assert self.tags is not None
        full: list[str] = self.tokenizer.batch_decode(lists, skip_special_tokens=False)
        for index, text in enumerate(full):
            if self.tags.opening in text or self.tags.closing in text:
                start = self.tags.answer_start(text)
                texts[index] = text[:start] + self._without_special(text[start:])
        return texts

    def answer_start(self, text: str, *, inside: bool = False) -> int:
        """Index in a response where the answer begins, after the model's thinking (see `ThinkingTags`)."""
        return self.tags.answer_start(text, inside=inside) if self.tags else 0

    def is_thinking(self, text: str, *, inside: bool = False) -> bool:
        """Whether a response never leaves its thinking: there is no answer. `inside` as for `answer_start`."""
        return self.tags.is_open(text, inside=inside) if self.tags else is_open(text)

    def opens_thinking(self, *, thinking: bool) -> bool:
        """Whether a rendered prompt ends inside an open thinking segment."""
        if self.tags is None or not thinking:
            return False
        return self.render(_USER, thinking=True).rstrip().endswith(self.tags.opening)

    @cached_property
    def turn_end(self) -> int | None:
        """The special token the template puts after an assistant's turn, which ends a response; None if unclear."""
        if self.plain or (self.tags is not None and "channel" in self.tags.opening):
            return None
        turns = [self._message("user", _USER), self._message("assistant", _REPLY)]
        text = self._try(turns, add_generation_prompt=False)
        if text is None or _REPLY not in text:
            return None
        after = self._tokenise([text[text.rindex(_REPLY) + len(_REPLY) :].lstrip() or " "])[0]
        special = set(self.tokenizer.all_special_ids) | set(getattr(self.tokenizer, "added_tokens_decoder", {}))
        return after[0] if after and after[0] in special else None

    @property
    def stop_text(self) -> str | None:
        """Text that ends a response where no special token does: the next turn of the plain template."""
        return "\nUser:" if self.plain else None

    # Rendering

    def _messages(self, prompt: Prompt, system: str | None) -> list[Message]:
        system = system if prompt.system is None else prompt.system
        messages: list[Message] = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
        messages.append({"role": "user", "content": str(prompt)})
        if system and self.system_role == "folded":
            first = next(message for message in messages if message["role"] == "user")
            first["content"] = f"{system}\n\n{first['content']}"
        elif system and self.system_role == "native":
            messages.insert(0, {"role": "system", "content": system})
        return messages

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **options: Any) -> str:
        turns = [self._message(turn["role"], turn["content"]) for turn in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=add_generation_prompt, **options
            )
        except _RENDER_ERRORS as error:
            raise ModelError(
                f"the model's chat template cannot be rendered: {error}",
                hint="update or replace the checkpoint's chat template",
            ) from error
        return text

    def _try(self, messages: Sequence[Message], **options: Any) -> str | None:
        try:
            return self._render(messages, **options)
        except ModelError:
            return None

    def _message(self, role: str, content: Any) -> Message:
        if self._parts and isinstance(content, str):
            content = [{"type": "text", "text": content}]
        return {"role": role, "content": content}

    def _render_plain(self, messages: Sequence[Message]) -> str:
        head = f"{messages[0]['content']}\n\n" if messages[0]["role"] == "system" else ""
        bos = self.tokenizer.bos_token if self._tokenizer_adds_bos else ""
        turns = [turn for turn in messages if turn["role"] != "system"]
        said = "".join(f"{turn['role'].capitalize()}: {turn['content']}\n" for turn in turns)
        return f"{bos}{head}{said}Assistant:"

    def _close_thinking(self, text: str) -> str:
        if self.tags is None:
            return text
        if self.tags.empty == self.tags.closing:  # channels: the assistant's header is open, its channel not chosen
            return text if text.endswith(self.tags.closing) else text + self.tags.empty
        opening = text.rstrip()
        if not opening.endswith(self.tags.opening):
            return text
        return opening[: -len(self.tags.opening)] + self.tags.empty

    # Tokens

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def _without_doubled_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

    def _without_special(self, text: str) -> str:
        for token in self.tokenizer.all_special_tokens:
            text = text.replace(token, "")
        return text

    @cached_property
    def _tokenizer_adds_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer(_USER)["input_ids"]
        return bos is not None and list(ids[:1]) == [bos]

    @cached_property
    def _special_tags(self) -> bool:
        """Whether decoding without special tokens would lose the thinking tags."""
        if self.tags is None:
            return False
        special = self.tokenizer.all_special_tokens
        return any(token in self.tags.opening or token in self.tags.closing for token in special if token)

    # Probing

    def _needs_parts(self) -> bool:
        """Whether the template wants content as a list of parts (multimodal ones do) and drops plain strings."""
        for parts in (False, True):
            self._parts = parts
            text = self._try([{"role": "user", "content": _USER}])
            if text is not None and _USER in text:
                return parts
        raise ModelError(
            "the model's chat template does not render a user's message",
            hint="check the chat template; a model without one gets a plain template",
        )

    def _probe_system(self) -> SystemRole:
        user = {"role": "user", "content": _USER}
        text = self._try([{"role": "system", "content": _SYSTEM}, user])
        if text is not None and _SYSTEM in text and _USER in text:
            return "native"
        folded = self._try([{"role": "user", "content": f"{_SYSTEM}\n\n{_USER}"}])
        return "folded" if folded is not None and _SYSTEM in folded else "omitted"

    def _probe_switch(self) -> str | None:
        user = [{"role": "user", "content": _USER}]
        for name in _SWITCHES:
            off, on = self._try(user, **{name: False}), self._try(user, **{name: True})
            if off is not None and on is not None and off != on:
                return name
        return None

    def _collect_warnings(self) -> list[str]:
        if self.plain:
            return ['the tokenizer has no chat template: prompts are written as "User: …" and "Assistant:"']
        found = []
        if self.system_role == "folded":
            found.append("the chat template has no system role: system prompts go before the user's message")
        elif self.system_role == "omitted":
            found.append("the chat template takes no system prompt: system prompts are left out")
        if self._tokenizer_adds_bos and self._tokenise([self.render(_USER)])[0][:1] != [self.tokenizer.bos_token_id]:
            found.append(
                "the chat template leaves out the beginning-of-text token that the tokenizer would add; "
                "the template is followed"
            )
        channels = self.tags is not None and self.tags.empty == self.tags.closing
        if self.tags and not channels and self.switch is None and not self.opens_thinking(thinking=True):
            found.append(
                f"the chat template knows {self.tags.opening} but has no switch for it: responses may begin with "
                "thinking, which is left out of what is scored"
            )
        return found


def _source(tokenizer: Any) -> str | None:
    """The Jinja source of the tokenizer's (default) chat template; None where it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        source: str = tokenizer.get_chat_template()
    except ValueError as error:
        raise ModelError(
            f"the tokenizer's chat template cannot be chosen: {' '.join(str(error).split())}",
            hint="give the checkpoint one default chat template",
        ) from error
    return source
