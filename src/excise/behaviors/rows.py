"""From a table to prompts: which column, which template, which rows, and what else is known of each."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

from excise.behaviors.loaders import Table, unknown_column
from excise.behaviors.prompt import Prompt
from excise.errors import PromptError

Filter = tuple[tuple[str, tuple[str, ...]], ...]

_USUAL_COLUMNS = ("prompt", "text", "instruction", "question", "goal", "input", "messages", "conversation", "chat")
_USUAL = {"category": ("category",), "language": ("language", "lang")}


def template_columns(template: str) -> tuple[str, ...]:
    """The columns that a template such as `"Answer: {question}"` is filled from.

    `{name[0]}` is the first of a list. Raises `ValueError` for a template that is not one.
    """
    names = []
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        column, _, index = name.partition("[")
        if not column or "." in column or spec or conversion or (index and not index.rstrip("]").isdigit()):
            raise ValueError(
                f"'{{{name}}}' is not a column: write {{column}}, or {{column[0]}} for the first of a list"
            )
        names.append(column)
    if not names:
        raise ValueError("the template names no column: write one in braces, such as {question}")
    return tuple(dict.fromkeys(names))


def prompts_of(
    table: Table,
    *,
    column: str | None,
    template: str | None,
    where: Filter,
    system: str | None,
    category: str | None,
    language: str | None,
) -> list[Prompt | None]:
    """A prompt for each row that passes the filter `where`; None where the row holds no text.

    Raises `PromptError` for columns that are missing or of the wrong kind, and chats that do not end with the user.
    """
    texts = _filled(table, template) if template is not None else _texts(table, column)
    passes = _passing(table, where, len(texts))
    categories = _labels(table, "category", category, len(texts))
    languages = _labels(table, "language", language, len(texts))
    found: list[Prompt | None] = []
    for text, passed, kind, tongue in zip(texts, passes, categories, languages, strict=True):
        if not passed:
            continue
        if text is None or not text.strip():
            found.append(None)
            continue
        own = text.system if text.system is not None else system
        found.append(Prompt(text.strip(), turns=text.turns, system=own, category=kind, language=tongue))
    return found


def _texts(table: Table, column: str | None) -> list[Prompt | None]:
    name = column if column is not None else _choose(table)
    if name not in table.columns:
        raise unknown_column(name, table.columns, where=table.where)
    return [None if value is None else _prompt(value, name, table.where) for value in table.column(name)]


def _prompt(value: Any, column: str, where: str) -> Prompt:
    if isinstance(value, str):
        return Prompt(value)
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "role" in item for item in value):
        return _chat(value, column, where)
    raise PromptError(
        f"the column '{column}' of {where} holds {type(value).__name__}, not text and no messages",
        hint="name the column of the prompts: --column NAME",
    )


def _chat(messages: Sequence[Mapping[str, Any]], column: str, where: str) -> Prompt:
    """A list of {role, content} messages, a system message perhaps first, the user's last."""
    turns = [(str(message["role"]), message.get("content")) for message in messages]
    system = None
    if turns[0][0] == "system":
        system, turns = turns[0][1], turns[1:]
    if not turns or turns[-1][0] != "user":
        raise PromptError(
            f"a conversation in '{column}' of {where} does not end with the user's turn",
            hint="a prompt is what the model answers: cut each conversation after a message of the user",
        )
    wrong = next((role for role, content in turns if role not in ("user", "assistant") or not _is_text(content)), None)
    if wrong is not None or not (system is None or _is_text(system)):
        raise PromptError(
            f"a conversation in '{column}' of {where} holds a message (of '{wrong or 'system'}') that is not plain "
            "text of user or assistant",
            hint='write messages as {"role": "user" or "assistant", "content": text}',
        )
    *earlier, (_, last) = turns
    return Prompt(str(last), turns=[(role, str(content)) for role, content in earlier], system=system)


def _is_text(content: object) -> bool:
    return isinstance(content, str)


def _choose(table: Table) -> str:
    usual = [name for name in _USUAL_COLUMNS if name in table.of_kind("text", "chat")]
    if usual:
        return usual[0]
    text, chats = table.of_kind("text"), table.of_kind("chat")
    if len(chats) == 1 or (not chats and len(text) == 1):
        return (chats or text)[0]
    several = [*chats, *text]
    raise PromptError(
        f"{table.where} has {'several text columns: ' + ', '.join(several) if several else 'no text column'}",
        hint="say which one holds the prompts: --column NAME",
    )


def _filled(table: Table, template: str) -> list[Prompt | None]:
    names = template_columns(template)
    missing = next((name for name in names if name not in table.columns), None)
    if missing is not None:
        raise unknown_column(missing, table.columns, where=table.where)
    filled: list[Prompt | None] = []
    for row in zip(*(table.column(name) for name in names), strict=True):
        values = dict(zip(names, row, strict=True))
        try:
            empty = any(value is None or value == "" for value in row)
            filled.append(None if empty else Prompt(template.format_map(values)))
        except IndexError:  # a list that is too short
            filled.append(None)
        except (TypeError, KeyError) as error:
            raise PromptError(
                f"the template {template!r} cannot be filled from {table.where}: {error}",
                hint="{column[0]} needs a column of lists",
            ) from error
    return filled


def _passing(table: Table, where: Filter, count: int) -> list[bool]:
    passes = [True] * count
    for name, allowed in where:
        if name not in table.columns:
            raise unknown_column(name, table.columns, where=table.where)
        values = table.column(name)
        passes = [passed and _as_text(value) in allowed for passed, value in zip(passes, values, strict=True)]
    return passes


def _labels(table: Table, kind: str, column: str | None, count: int) -> Sequence[str | None]:
    """The category or language of each row: of the column that is named, or the usual one where there is one."""
    if column is not None and column not in table.columns:
        raise unknown_column(column, table.columns, where=table.where)
    name = column or next((name for name in _USUAL[kind] if name in table.of_kind("text")), None)
    if name is None:
        return list(repeat(None, count))
    return [None if value is None else _as_text(value) for value in table.column(name)]


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
