"""Whether a behavior file can be used: everything that is wrong with it at once, not the first thing alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from excise.behaviors.behavior import Behavior
from excise.behaviors.catalog import locate, read_toml
from excise.behaviors.shapes import resolved
from excise.behaviors.source import Source
from excise.behaviors.splits import SIDES, SPLITS, SplitSizes
from excise.errors import BehaviorError, PromptError


@dataclass(frozen=True)
class Finding:
    """One thing to know about a behavior file. `kind` "error": it cannot be used so; "warning": it can.

    about  the key or the source that it is about
    """

    kind: Literal["error", "warning"]
    about: str
    message: str

    def to_json(self) -> dict[str, str]:
        """As JSON values."""
        return {"kind": self.kind, "about": self.about, "message": self.message}


@dataclass(frozen=True)
class Check:
    """What came of checking a behavior file.

    behavior  None where the file is not valid
    findings  errors first
    sizes     prompts of each split, as `Splits.sizes` has them; None where they could not be cut
    """

    path: Path
    behavior: Behavior | None
    findings: tuple[Finding, ...]
    sizes: dict[str, list[int]] | None

    @property
    def valid(self) -> bool:
        """Whether there is no error."""
        return not any(finding.kind == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "file": str(self.path),
            "behavior": None if self.behavior is None else self.behavior.name,
            "valid": self.valid,
            "findings": [finding.to_json() for finding in self.findings],
            "splits": self.sizes,
        }


def check(name_or_path: str | Path, *, sizes: SplitSizes | None = None, seed: int = 0, offline: bool = False) -> Check:
    """Parse a behavior file, read its sources and cut its splits, and collect what is wrong.

    offline  leave sources on the Hub unread

    Raises `BehaviorError` where there is no such file.
    """
    path = locate(name_or_path)
    behavior, findings = _parsed(path)
    if behavior is None:
        return Check(path, None, tuple(findings), None)
    findings += _pins(behavior)
    unread = [source for source in _sources(behavior) if source.on_hub and offline]
    for source in _sources(behavior):
        if source in unread:
            findings.append(Finding("warning", source.location, "not read: on the Hub, and this check is offline"))
            continue
        try:
            source.rows(offline=offline)
        except PromptError as error:
            findings.append(Finding("error", source.location, f"{error.message} ({error.hint})"))
    found = None
    if not unread and not any(finding.kind == "error" for finding in findings):
        found, more = _cut(behavior, sizes or SplitSizes(), seed=seed, offline=offline)
        findings += more
    ordered = sorted(findings, key=lambda finding: finding.kind)
    return Check(path, behavior, tuple(ordered), found)


def _parsed(path: Path) -> tuple[Behavior | None, list[Finding]]:
    try:
        content = resolved({"name": path.stem, **read_toml(path)}, path.parent)
        return Behavior.model_validate(content), []
    except BehaviorError as error:
        return None, [Finding("error", str(path), error.message)]
    except ValidationError as error:
        found = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            known = f" (the keys are: {', '.join(Behavior.model_fields)}, contrast)" if len(item["loc"]) == 1 else ""
            about = known if item["type"] == "extra_forbidden" else ""
            found.append(Finding("error", key, f"{item['msg'].removeprefix('Value error, ')}{about}"))
        return None, found
    except ValueError as error:  # of `resolved`; a ValidationError is one, too
        return None, [Finding("error", "contrast", str(error))]


def _pins(behavior: Behavior) -> Iterator[Finding]:
    if not behavior.description.strip():
        yield Finding("warning", "description", "there is none: say in a sentence what the behavior is")
    for source in _sources(behavior):
        if source.on_hub and not source.pinned:
            yield Finding("warning", source.location, "no revision: the dataset may change; write owner/name@COMMIT")


def _cut(
    behavior: Behavior, sizes: SplitSizes, *, seed: int, offline: bool
) -> tuple[dict[str, list[int]] | None, list[Finding]]:
    try:
        splits = behavior.splits(sizes, seed=seed, offline=offline)
    except PromptError as error:
        return None, [Finding("error", "splits", f"{error.message} ({error.hint})")]
    findings = [Finding("warning", "splits", told) for told in splits.warnings]
    for split in SPLITS:
        counts = splits.sizes()[split]
        small = [
            f"{count} {side}" for count, side in zip(counts, SIDES, strict=False) if 0 < count < sizes.of(split) / 2
        ]
        if small:
            message = f"{split} holds {' and '.join(small)} prompts, not {sizes.of(split)}: its figures will be coarse"
            findings.append(Finding("warning", "splits", message))
    return splits.sizes(), findings


def _sources(behavior: Behavior) -> list[Source]:
    """Every source once."""
    sides = (behavior.target, behavior.baseline, behavior.keep or {})
    return list(dict.fromkeys(source for side in sides for source in side.values()))
