"""The shapes in which a behavior file may name its sources, brought into one: a source for each split of each side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from excise.behaviors.source import Source
from excise.behaviors.splits import SIDES, SPLITS

_DIFFERS = ("system", "column", "template")
CONTRAST_KEYS = ("prompts", *(f"{side}_{what}" for side in ("target", "baseline") for what in _DIFFERS))
"""What `[contrast]` may hold."""


def per_split(value: object) -> object:
    """One source for all splits, or one for each; a bare path or name is a source. The rest is left for validation."""
    if isinstance(value, Mapping) and "location" not in value:
        return {split: _source(source) for split, source in value.items()}
    return dict.fromkeys(SPLITS, _source(value)) if isinstance(value, str | Path | Source | Mapping) else value


def changed(value: object, **changes: object) -> object:
    """The sources with these fields replaced, where they are not None."""
    given = {key: change for key, change in changes.items() if change is not None}
    return _each(value, lambda source: {**source, **given})


def resolved(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A behavior file's content with `[contrast]` spelled out, and relative paths taken from `folder`.

    Raises `ValueError` for a contrast that is not one.
    """
    spelled = without_contrast(content)

    def from_folder(source: dict[str, Any]) -> dict[str, Any]:
        location = source.get("location")
        if not isinstance(location, str) or not location:
            return source
        return {**source, "location": Source(location=location).resolved(folder).location}

    return spelled | {side: _each(spelled[side], from_folder) for side in SIDES if side in spelled}


def without_contrast(content: Mapping[str, Any]) -> dict[str, Any]:
    """`[contrast]`, one set of prompts asked in two ways, as paired target and baseline sources."""
    if "contrast" not in content:
        return dict(content)
    contrast = content["contrast"]
    if not isinstance(contrast, Mapping) or "prompts" not in contrast:
        raise ValueError("contrast: it needs `prompts`, and what differs, such as `target_system`")
    unknown = [key for key in contrast if key not in CONTRAST_KEYS]
    if unknown:
        raise ValueError(f"contrast: unknown key '{unknown[0]}' (the keys are: {', '.join(CONTRAST_KEYS)})")
    doubled = [side for side in ("target", "baseline") if side in content]
    if doubled:
        raise ValueError(f"contrast: it stands for target and baseline, but there is '{doubled[0]}' too")
    sides = {side: {what: contrast.get(f"{side}_{what}") for what in _DIFFERS} for side in ("target", "baseline")}
    if sides["target"] == sides["baseline"]:
        raise ValueError("contrast: target and baseline are the same: give each a system prompt, column or template")
    spelled = {side: changed(contrast["prompts"], **differs) for side, differs in sides.items()}
    return {key: value for key, value in content.items() if key != "contrast"} | spelled | {"paired": True}


def _each(value: object, change: Callable[[dict[str, Any]], dict[str, Any]]) -> object:
    sources = per_split(value)
    if not isinstance(sources, Mapping):
        return sources
    return {
        split: change(dict(source)) if isinstance(source, Mapping | Source) else source
        for split, source in sources.items()
    }


def _source(value: object) -> object:
    return {"location": str(value)} if isinstance(value, str | Path) else value
