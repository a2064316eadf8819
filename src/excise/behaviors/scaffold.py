"""A new behavior file, as text to be edited by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from excise.behaviors.markers import Proposal
from excise.behaviors.source import Source

_SIDES = {
    "target": "Prompts on which the model shows the behavior.",
    "baseline": "Prompts on which it does not, and whose answers must stay as they are.",
}
_KEEP = """\
# Prompts where the behavior must stay: its rate there is reported too.
# keep = "keep.txt"
"""
_FORMS = """\
# A source is a file (text: one prompt per line; JSONL, JSON, CSV, Parquet: one per row), a Hub dataset
# "owner/name@COMMIT[train]", or a table: {location = "prompts.csv", column = "question", where = {kind = "hard"}}.
# Splits may have sources of their own: {fit = ..., tune = ..., select = ..., report = ...}. All keys:
# docs/behaviors.md
"""


def scaffold(
    path: Path,
    *,
    sources: Mapping[str, Source],
    description: str = "",
    markers: Sequence[str] = (),
    proposal: Proposal | None = None,
    systems: tuple[str, str] | None = None,
    system: str | None = None,
    max_tokens: int = 64,
) -> str:
    """The content of a behavior file at `path`: with the sources and markers that are known, and comments for the rest.

    sources   "target" and "baseline"; or "prompts", which `systems`, two system prompts, make target and baseline of
    proposal  markers, with how well they do
    """
    folder = path.parent
    lines = [f"description = {_quoted(description or 'TODO: what the behavior is, in a sentence.')}", ""]
    lines += [f"max_tokens = {max_tokens}  # of a response, to tell whether it shows the behavior"]
    lines += [] if system is None else [f"system = {_quoted(system)}"]
    lines += ['# positions = ["-1", "-2", "-3", "-4", "-5", "+1"]  # "onset" and "response" for what comes late', ""]
    lines += [_FORMS]
    if systems is None:
        for side, about in _SIDES.items():
            source = sources.get(side, Source(location=f"{side}.txt"))
            lines += [f"# {about}", f"{side} = {_source(source, folder)}", ""]
        lines += [_KEEP]
    else:
        lines += [_KEEP, "# The same prompts, asked under two system prompts.", "[contrast]"]
        lines += [f"prompts = {_source(sources['prompts'], folder)}"]
        lines += [f"{side}_system = {_quoted(text)}" for side, text in zip(_SIDES, systems, strict=True)]
        lines += [""]
    lines += ["# A response that holds one of these shows the behavior; case does not matter.", "[detectors]"]
    lines += _markers(markers, proposal)
    lines += ["# patterns = ['''\\bas an AI\\b''']  # regular expressions"]
    return "\n".join(lines) + "\n"


def _markers(markers: Sequence[str], proposal: Proposal | None) -> list[str]:
    if proposal is None or not proposal.markers:
        return [f"markers = [{', '.join(map(_quoted, markers))}]" + ("" if markers else "  # TODO: at least one")]
    rows = [f"    {_quoted(marker)}," for marker in markers]
    rows += [
        f"    {_quoted(marker.text)},  # in {marker.target:.0%} of held-out target responses, {marker.baseline:.0%} of "
        "baseline ones"
        for marker in proposal.markers
    ]
    return ["markers = [", *rows, "]"]


def _source(source: Source, folder: Path) -> str:
    location = Path(source.location).expanduser()
    if location.exists():
        source = source.model_copy(update={"location": Path(os.path.relpath(location, folder)).as_posix()})
    given = source.model_dump(exclude_defaults=True)
    if set(given) == {"location"}:
        return _quoted(source.location)
    return "{" + ", ".join(f"{key} = {_quoted(str(value))}" for key, value in given.items()) + "}"


def _quoted(text: str) -> str:
    """A TOML basic string; JSON escapes the same characters in the same way, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
