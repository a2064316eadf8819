"""Where prompts come from: a local file, a local dataset directory, or a dataset on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from excise.behaviors import loaders
from excise.errors import PromptError

_HUB = re.compile(
    r"(?P<name>[\w.\-]+(?:/[\w.\-]+)?)(?::(?P<config>[\w.\-]+))?(?:@(?P<revision>[^\[\]]+))?(?:\[(?P<split>.+)\])?"
)
_DIRECTORY = re.compile(r"(?P<path>.+?)(?:\[(?P<split>.+)\])?")


class Source(BaseModel):
    """One source of prompts.

    location  a path (`.txt`: one prompt per line, blank lines skipped; `.jsonl`, `.csv`, `.parquet`: one prompt per
              row), a directory `datasets` can load with `[split]`, or a Hub id with `:config`, `@revision`, `[split]`
    column    which column holds the prompts; None: the usual names, or the only text column
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    location: str
    column: str | None = None

    def resolved(self, folder: Path) -> Source:
        """The same source with a relative path taken from `folder`, where there is such a file."""
        path = folder / Path(self.location).expanduser()
        is_local = path.exists() or loaders.looks_like_file(self.location) or self.location.startswith(".")
        return self.model_copy(update={"location": str(path)}) if is_local else self

    def read(self, *, offline: bool = False) -> tuple[str, ...]:
        """All prompts, in order, stripped, duplicates (by `normalised`) left out.

        offline  take a Hub dataset from the local cache only

        Raises `PromptError` for a source that is missing, empty, not UTF-8 or without the column.
        """
        prompts = deduplicated(self._read(offline=offline))
        if not prompts:
            raise PromptError(f"{self.location} holds no prompts", hint="give one prompt per line, or per row")
        return prompts

    def _read(self, *, offline: bool) -> list[str]:
        path = Path(self.location).expanduser()
        if path.is_file():
            return loaders.read_file(path, column=self.column)
        directory = _DIRECTORY.fullmatch(self.location)
        if directory is not None and Path(directory["path"]).expanduser().is_dir():
            folder = Path(directory["path"]).expanduser().resolve()
            return loaders.read_dataset(str(folder), split=directory["split"], column=self.column, offline=offline)
        hub = _HUB.fullmatch(self.location)
        if hub is None or loaders.looks_like_file(self.location) or path.is_absolute():
            raise PromptError(
                f"no prompt file at {self.location}",
                hint="check the path; a dataset on the Hub is written owner/name, owner/name@revision[split]",
            )
        return loaders.read_dataset(
            hub["name"],
            config=hub["config"],
            revision=hub["revision"],
            split=hub["split"],
            column=self.column,
            offline=offline,
        )


def normalised(prompt: str) -> str:
    """What makes two prompts the same: their words, whatever the case and the blanks."""
    return " ".join(prompt.casefold().split())


def deduplicated(prompts: list[str]) -> tuple[str, ...]:
    """The prompts stripped, in order, blank ones and repetitions left out."""
    unique: dict[str, str] = {}
    for prompt in prompts:
        unique.setdefault(normalised(prompt), prompt.strip())
    unique.pop("", None)
    return tuple(unique.values())
