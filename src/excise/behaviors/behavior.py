"""`Behavior`: what is to be removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from excise.behaviors.catalog import locate, read_toml
from excise.behaviors.cutting import Overlap, make_splits
from excise.behaviors.detectors import Detectors
from excise.behaviors.duplicates import NEAR
from excise.behaviors.measures import Classifier, Judge, Margin
from excise.behaviors.shapes import changed, per_split, resolved
from excise.behaviors.source import Source
from excise.behaviors.splits import SPLITS, Side, Split, Splits, SplitSizes
from excise.config import RunConfig
from excise.errors import BehaviorError

SourceLike = str | Path | Source | Mapping[str, Any]
"""A path or name, a source, the fields of one, or any of these for each split."""


class Behavior(BaseModel):
    """One learned behavior: prompts that show it, prompts that do not, and how to tell a response that does.

    name         short name
    description  what it is, in a sentence or two
    target       where the prompts that show it come from, per split; splits that name the same source share it
    baseline     the same for prompts that do not show it, and whose answers must stay as they are
    keep         prompts where the behavior must stay, for splits that have any: its rate there is reported, too
    paired       target and baseline belong together row by row: each pair stays in one split
    overlap      what to do where a prompt of the report source is in another source, too: "refuse", or "drop" it there
    near_duplicates  from which similarity on two prompts may not be in different splits; 0: any (`duplicates`)
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
    keep: Mapping[Split, Source] | None = None
    paired: bool = False
    overlap: Overlap = "refuse"
    near_duplicates: float = Field(default=NEAR, ge=0, le=1)
    detectors: Detectors
    deflections: Detectors | None = None
    classifier: Classifier | None = None
    judge: Judge | None = None
    margin: Margin | None = None
    system: str | None = None
    thinking: bool = False
    max_tokens: int = Field(default=64, gt=0)
    positions: tuple[str, ...] = ("-1", "-2", "-3", "-4", "-5", "+1")

    @field_validator("target", "baseline", "keep", mode="before")
    @classmethod
    def _per_split(cls, value: object) -> object:
        return per_split(value)

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
        named = content.get("classifier")
        if isinstance(named, dict) and (path.parent / str(named.get("model"))).is_dir():
            named["model"] = str((path.parent / str(named["model"])).resolve())
        try:
            content = resolved(content, path.parent)
        except ValueError as error:
            raise BehaviorError(f"{path} is not valid: {error}", hint="docs/behaviors.md names every key") from error
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
            "target": changed(target, column=column),
            "baseline": changed(baseline, column=column),
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
            template=config.template,
            category=config.category,
            language=config.language,
            near_duplicates=config.near_duplicates,
            markers=config.marker,
            system=config.system,
            thinking=config.thinks,
            max_tokens=config.max_tokens,
        )

    def with_options(
        self,
        *,
        target: SourceLike | None = None,
        baseline: SourceLike | None = None,
        column: str | None = None,
        template: str | None = None,
        category: str | None = None,
        language: str | None = None,
        near_duplicates: float | None = None,
        markers: Sequence[str] = (),
        system: str | None = None,
        thinking: bool | None = None,
        max_tokens: int | None = None,
    ) -> Behavior:
        """The behavior with what is given replaced. `markers` replace all detectors, and name it `custom`.

        `column`, `template`, `category` and `language` go with `target` and `baseline`; without either they are of the
        behavior's own sources. With other targets or baselines, nothing is paired.
        """
        content: dict[str, Any] = dict(self)
        about = {"column": column, "template": template, "category": category, "language": language}
        for side, given in (("target", target), ("baseline", baseline)):
            if given is not None:
                content |= {side: changed(given, **about), "paired": False}
            elif target is None and baseline is None:
                content[side] = changed(content[side], **about)
        if markers:
            content |= {"name": "custom", "description": "", "detectors": Detectors(markers=tuple(markers))}
        replaced = {
            "near_duplicates": near_duplicates,
            "system": system,
            "thinking": thinking,
            "max_tokens": max_tokens,
        }
        content |= {key: value for key, value in replaced.items() if value is not None}
        return self._checked(content, where=f"the behavior '{self.name}'")

    def find_onset(self, text: str) -> int | None:
        """Index of the character where the sentence that shows the behavior begins; None where nothing shows it."""
        return self.detectors.find_onset(text)

    def splits(self, sizes: SplitSizes | None = None, seed: int = 0, offline: bool = False) -> Splits:
        """Read the prompts and cut them into disjoint splits; the same seed gives the same ones.

        sizes    prompts per split and side; where a source holds fewer, its splits shrink in proportion
        offline  take Hub datasets from the local cache only

        Raises `PromptError` for prompts that are missing, unreadable, too few, on two sides, or both in the report's
        source and in another one.
        """
        sources: dict[Side, Mapping[Split, Source]] = {"target": self.target, "baseline": self.baseline}
        return make_splits(
            sources | ({} if self.keep is None else {"keep": self.keep}),
            paired=self.paired,
            overlap=self.overlap,
            near_duplicates=self.near_duplicates,
            sizes=sizes or SplitSizes(),
            seed=seed,
            offline=offline,
        )

    @classmethod
    def _checked(cls, content: Mapping[str, Any], *, where: str) -> Behavior:
        try:
            return cls.model_validate(dict(content))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise BehaviorError(
                f"{where} is not valid: {key}: {first['msg'].removeprefix('Value error, ')}",
                hint=f"the keys are: {', '.join(cls.model_fields)}, contrast",
            ) from error
