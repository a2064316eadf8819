"""A hash of what an edit does."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from excise.edit.edit import Edit


def digest(edit: Edit) -> str:
    """A hash of what an edit does, whatever is recorded about it."""
    text = [(site.writer.to_json(), [_described(change) for change in site.changes]) for site in edit.sites]
    return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()[:16]


def _described(change: Any) -> list[Any]:
    return [
        hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest() if isinstance(value, torch.Tensor) else value
        for value in vars(change).values()
    ]
