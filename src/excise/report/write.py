"""Writing the report, the model card, and the page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from excise.report import card, evaluation, html
from excise.report.record import Record
from excise.runs import writing


def write_report(result: Mapping[str, Any], directory: Path) -> tuple[Path, Path]:
    """Write `report.html` and `README.md` (the model card of the baked model) from the content of `result.json`.

    Both hold no prompts and no responses. Whatever the result lacks, or holds as null, they say so in words. Existing
    files are replaced, each whole or not at all. Gives their paths.

    Raises `DiskFullError` when the disk is full.
    """
    record = Record(result)
    written = directory / "report.html", directory / "README.md"
    for path, text in zip(written, (html.render(record), card.render(record)), strict=True):
        with writing(path) as scratch:
            scratch.write_bytes(text.encode("utf-8", errors="replace"))
    return written


def write_evaluation(data: Mapping[str, Any], directory: Path) -> Path:
    """Write `eval.html`, the page of a comparison, from the content of `eval.json`; gives its path.

    It holds no prompts and no responses. Raises `DiskFullError` when the disk is full.
    """
    path = directory / "eval.html"
    with writing(path) as scratch:
        scratch.write_bytes(evaluation.render(Record(data)).encode("utf-8", errors="replace"))
    return path
