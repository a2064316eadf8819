"""`Behavior`: what is to be removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from excise.behaviors.catalog import locate, read_toml
from excise.behaviors.detectors import Detectors
from excise.behaviors.measures import Classifier, Judge, Margin
from excise.behaviors.source import Source
from excise.behaviors.splits import SPLITS, Split, Splits, SplitSizes, make_splits
from excise.config import RunConfig
from excise.errors import BehaviorError

SourceLike = str | Path | Source | Mapping[str, str | Path | Source]


class Behavior(BaseModel):
    """One learned behavior: prompts that show it, prompts that do not, and how to tell a response that does.

    name         short name
    description  what it is, in a sentence or two
    target       where the prompts that show it come from, per split; splits that name the same source share it
    baseline     the same for prompts that do not show it, and whose answers must stay as they are
    detectors    how to tell
    system       system turn of every prompt; None: none
    thinking     whether thinking models may think before they answer
    max_tokens   how many tokens of a response are generated to tell
    deflections  how to tell an answer to something else, or to an emptied request, where the detectors hit nothing
    classifier   a model that labels responses too
    judge        what a judging model is asked
    margin       beginnings of responses whose likelihoods are compared
    positions    where directions may be taken: "-1" the last token of the rendered prompt, "-2" the one before, "+1"
                 the first token of the response, "response" the mean over the response's first tokens, "onset" the
                 last token before the sentence that shows the behavior (for behaviors that come late in a response)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    description: str = ""
    target: Mapping[Split, Source]
    baseline: Mapping[Split, Source]
    detectors: Detectors
    deflections: Detectors | None = None
    classifier: Classifier | None = None
    judge: Judge | None = None
    margin: Margin | None = None
    system: str | None = None
    thinking: bool = False
    max_tokens: int = Field(default=64, gt=0)
    positions: tuple[str, ...] = ("-1", "-2", "-3", "-4", "-5", "+1")

    @field_validator("target", "baseline", mode="before")
    @classmethod
    def _per_split(cls, value: object) -> object:
        return _sources(value)

    @field_validator("target", "baseline")
    @classmethod
    def _every_split_has_a_source(cls, sources: Mapping[Split, Source]) -> Mapping[Split, Source]:
        missing = [split for split in SPLITS if split not in sources]
        if missing:
            raise ValueError(f"no source for {', '.join(missing)}")
        return sources

    @field_validator("detectors")
    @classmethod
    def _detect_something(cls, detectors: Detectors) -> Detectors:
        if not detectors.markers and not detectors.patterns:
            raise ValueError("no marker and no pattern: nothing would ever show the behavior")
        return detectors

    @field_validator("positions")
    @classmethod
    def _positions_are_known(cls, positions: tuple[str, ...]) -> tuple[str, ...]:
        known = {"+1", "response", "onset", *(f"-{index}" for index in range(1, 33))}
        wrong = [position for position in positions if position not in known]
        if wrong or not positions:
            raise ValueError(f"unknown positions {wrong}: use '-1' to '-32', '+1', 'response' and 'onset'")
        return positions

    @classmethod
    def load(cls, name_or_path: str | Path) -> Behavior:
        """Read a behavior: a name (`excise behaviors` lists them) or the path of a TOML file.

        Paths of prompts, and of a classifier, in the file are relative to it. Raises `BehaviorError`.
        """
        path = locate(name_or_path)
        content = {"name": path.stem, **read_toml(path)}
        for side in ("target", "baseline"):
            sources = _sources(content.get(side))
            if isinstance(sources, Mapping):
                content[side] = {
                    split: source.resolved(path.parent) if isinstance(source, Source) else source
                    for split, source in sources.items()
                }
        named = content.get("classifier")
        if isinstance(named, dict) and (path.parent / str(named.get("model"))).is_dir():
            named["model"] = str((path.parent / str(named["model"])).resolve())
        return cls._checked(content, where=str(path))

    @classmethod
    def from_files(
        cls,
        target: SourceLike,
        baseline: SourceLike,
        *,
        markers: Sequence[str] = (),
        patterns: Sequence[str] = (),
        window: int | None = None,
        column: str | None = None,
        name: str = "custom",
        system: str | None = None,
        max_tokens: int = 64,
        positions: Sequence[str] | None = None,
    ) -> Behavior:
        """A behavior from prompts (files, Hub datasets, or a mapping of splits to them) and what to look for.

        Raises `BehaviorError`; the prompts themselves are read by `splits`.
        """
        content: dict[str, Any] = {
            "name": name,
            "target": _with_column(target, column),
            "baseline": _with_column(baseline, column),
            "detectors": {"markers": tuple(markers), "patterns": tuple(patterns), "window": window},
            "system": system,
            "max_tokens": max_tokens,
        }
        if positions is not None:
            content["positions"] = tuple(positions)
        return cls._checked(content, where="the behavior")

    @classmethod
    def from_config(cls, config: RunConfig) -> Behavior:
        """The behavior that a run's settings ask for. Raises `BehaviorError`."""
        return cls.load(config.behavior).with_options(
            target=config.target,
            baseline=config.baseline,
            column=config.column,
            markers=config.marker,
            system=config.system,
            thinking=None if config.thinking is None else config.thinking == "on",
            max_tokens=config.max_tokens,
        )

    def with_options(
        self,
        *,
        target: SourceLike | None = None,
        baseline: SourceLike | None = None,
        column: str | None = None,
        markers: Sequence[str] = (),
        system: str | None = None,
        thinking: bool | None = None,
        max_tokens: int | None = None,
    ) -> Behavior:
        """The behavior with what is given replaced. `markers` replace all detectors, and name it `custom`.

        `column` goes with `target` and `baseline`; without either it is the column of the behavior's own sources.
        """
        content: dict[str, Any] = dict(self)
        for side, given in (("target", target), ("baseline", baseline)):
            if given is not None:
                content[side] = _with_column(given, column)
            elif column is not None and target is None and baseline is None:
                content[side] = _with_column(content[side], column)
        if markers:
            content |= {"name": "custom", "description": "", "detectors": Detectors(markers=tuple(markers))}
        replaced = {"system": system, "thinking": thinking, "max_tokens": max_tokens}
        content |= {key: value for key, value in replaced.items() if value is not None}
        return self._checked(content, where=f"the behavior '{self.name}'")

    def find_onset(self, text: str) -> int | None:
        """Index of the character where the sentence that shows the behavior begins; None where nothing shows it."""
        return self.detectors.find_onset(text)

    def splits(self, sizes: SplitSizes | None = None, seed: int = 0, offline: bool = False) -> Splits:
        """Read the prompts and cut them into disjoint splits; the same seed gives the same ones.

        sizes    prompts per split and side; where a source holds fewer, its splits shrink in proportion
        offline  take Hub datasets from the local cache only

        Raises `PromptError` for prompts that are missing, unreadable, too few, or on both sides.
        """
        return make_splits(self.target, self.baseline, sizes=sizes or SplitSizes(), seed=seed, offline=offline)

    @classmethod
    def _checked(cls, content: Mapping[str, Any], *, where: str) -> Behavior:
        try:
            return cls.model_validate(dict(content))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise BehaviorError(
                f"{where} is not valid: {key}: {first['msg']}",
                hint=f"the keys are: {', '.join(cls.model_fields)}",
            ) from error


def _sources(value: object) -> object:
    """One source for all splits, or one for each; what is neither is left for validation to refuse."""
    if isinstance(value, Mapping) and "location" not in value:
        return {split: _source(source) for split, source in value.items()}
    source = _source(value)
    return dict.fromkeys(SPLITS, source) if isinstance(source, Source) else source


def _source(value: object) -> object:
    if isinstance(value, str | Path):
        return Source(location=str(value))
    if isinstance(value, Mapping) and set(value) <= {"location", "column"} and "location" in value:
        return Source(location=str(value["location"]), column=value.get("column"))
    return value


def _with_column(value: SourceLike, column: str | None) -> object:
    sources = _sources(value)
    if column is None or not isinstance(sources, Mapping):
        return sources
    return {
        split: source.model_copy(update={"column": column}) if isinstance(source, Source) else source
        for split, source in sources.items()
    }
