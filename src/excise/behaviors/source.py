"""Where prompts come from: standard input, a local file, a local dataset directory, or a dataset on the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from excise.behaviors import loaders
from excise.behaviors.prompt import Prompt, normalised
from excise.behaviors.rows import Filter, prompts_of, template_columns
from excise.errors import PromptError

_HUB = re.compile(
    r"(?P<name>[\w.\-]+(?:/[\w.\-]+)?)(?::(?P<config>[\w.\-]+))?(?:@(?P<revision>[^\[\]]+))?(?:\[(?P<split>.+)\])?"
)
_DIRECTORY = re.compile(r"(?P<path>.+?)(?:\[(?P<split>.+)\])?")


class Source(BaseModel):
    """One source of prompts.

    location  a path (`.txt`: one prompt per line, blank lines skipped; `.jsonl`, `.json`, `.csv`, `.parquet`: one
              prompt per row), a directory `datasets` can load with `[split]`, a Hub id with `:config`, `@revision`,
              `[split]` (also `[train[:200]]`), or `-` for standard input
    column    which column holds the prompts, as text or as a list of {role, content} messages; None: the usual names,
              or the only text column
    template  a text with `{column}` in it, in place of a column
    where     only rows whose column holds this text, or one of these: `{label = "safe"}`
    system    system prompt of these prompts, in place of the behavior's
    category  which column holds each prompt's category, and
    language  its language; None: the columns of these names, where there are any
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    location: str = Field(min_length=1)
    column: str | None = None
    template: str | None = None
    where: Filter = ()
    system: str | None = None
    category: str | None = None
    language: str | None = None

    @field_validator("where", mode="before")
    @classmethod
    def _filter_of_a_table(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return tuple(
            (str(name), tuple(map(_as_text, wanted)) if _is_list(wanted) else (_as_text(wanted),))
            for name, wanted in value.items()
        )

    @field_validator("template")
    @classmethod
    def _template_names_columns(cls, template: str | None) -> str | None:
        if template is not None:
            template_columns(template)
        return template

    @model_validator(mode="after")
    def _column_or_template(self) -> Source:
        if self.column is not None and self.template is not None:
            raise ValueError("give a column or a template: the template names its columns itself")
        return self

    @property
    def on_hub(self) -> bool:
        """Whether it is a dataset on the Hub: neither standard input nor anything on this machine."""
        if self.location == "-" or Path(self.location).expanduser().exists():
            return False
        directory = _DIRECTORY.fullmatch(self.location)
        local = directory is not None and Path(directory["path"]).expanduser().is_dir()
        return not local and not loaders.looks_like_file(self.location) and _HUB.fullmatch(self.location) is not None

    @property
    def pinned(self) -> bool:
        """Whether a dataset on the Hub is named with the commit that it is to be taken from."""
        hub = _HUB.fullmatch(self.location)
        return hub is not None and re.fullmatch("[0-9a-f]{40}", hub["revision"] or "") is not None

    def resolved(self, folder: Path) -> Source:
        """The same source with a relative path taken from `folder`, where there is such a file."""
        if self.location == "-":
            return self
        path = folder / Path(self.location).expanduser()
        is_local = path.exists() or loaders.looks_like_file(self.location) or self.location.startswith(".")
        return self.model_copy(update={"location": str(path)}) if is_local else self

    def read(self, *, offline: bool = False) -> tuple[Prompt, ...]:
        """All prompts, in order, stripped, duplicates (by `normalised`) left out.

        offline  take a Hub dataset from the local cache only

        Raises `PromptError` for a source that is missing, empty, not UTF-8 or without the column.
        """
        return deduplicated([prompt for prompt in self.rows(offline=offline) if prompt is not None])

    def rows(self, *, offline: bool = False) -> list[Prompt | None]:
        """A prompt for each row that passes the filter, repetitions included; None for a blank one.

        Raises `PromptError` as `read` does, and where no row holds a prompt.
        """
        found = prompts_of(
            self._table(offline=offline),
            column=self.column,
            template=self.template,
            where=self.where,
            system=self.system,
            category=self.category,
            language=self.language,
        )
        if not any(found):
            of_filter = f" where {', '.join(name for name, _ in self.where)} is as asked" if self.where else ""
            raise PromptError(
                f"{self.location} holds no prompts{of_filter}", hint="give one prompt per line, or per row"
            )
        return found

    def _table(self, *, offline: bool) -> loaders.Table:
        if self.location == "-":
            return loaders.read_stdin()
        path = Path(self.location).expanduser()
        if path.is_file():
            return loaders.read_file(path)
        directory = _DIRECTORY.fullmatch(self.location)
        if directory is not None and Path(directory["path"]).expanduser().is_dir():
            folder = Path(directory["path"]).expanduser().resolve()
            return loaders.read_dataset(str(folder), split=directory["split"], offline=offline)
        hub = _HUB.fullmatch(self.location)
        if hub is None or loaders.looks_like_file(self.location) or path.is_absolute():
            raise PromptError(
                f"no prompt file at {self.location}",
                hint="check the path; a dataset on the Hub is written owner/name, owner/name@revision[split]",
            )
        return loaders.read_dataset(
            hub["name"], config=hub["config"], revision=hub["revision"], split=hub["split"], offline=offline
        )


def deduplicated(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The prompts in order, repetitions left out."""
    unique: dict[str, Prompt] = {}
    for prompt in prompts:
        unique.setdefault(normalised(prompt), prompt)
    return tuple(unique.values())


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
