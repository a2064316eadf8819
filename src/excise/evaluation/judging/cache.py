"""Verdicts on disk, so that no question is paid for twice and a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from excise.behaviors.measures import Label
from excise.evaluation.judging.endpoint import Endpoint
from excise.runs import shared_folder, write_json


@dataclass(frozen=True)
class Kept:
    """One verdict and what it took; `cost` is None where no price is known. The texts themselves are not kept."""

    label: Label
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


class VerdictCache:
    """A folder with a small file per question; its name is a hash of the endpoint, the model and the whole chat.

    folder  None: `judge` in the folder that EXCISE_CACHE names, or in `~/.cache/excise`
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or (shared_folder() or Path.home() / ".cache" / "excise") / "judge"

    def key(self, endpoint: Endpoint, messages: Sequence[Mapping[str, str]]) -> str:
        """What a question is kept under."""
        content = [endpoint.url, endpoint.model, [dict(message) for message in messages]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> Kept | None:
        """The verdict on a question; None where there is none, or its file is damaged."""
        try:
            found: Any = json.loads(self._path(key).read_text(encoding="utf-8"))
            kept = Kept(**found)
        except (OSError, ValueError, TypeError):
            return None
        return kept if kept.label in get_args(Label) else None

    def put(self, key: str, kept: Kept) -> None:
        """Keep a verdict; the file is whole or not there. Raises `DiskFullError`."""
        write_json(self._path(key), asdict(kept))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
