"""A model without its weights: what `config.json` alone tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from excise.model.editable import EditableModel
from excise.model.evidence import Evidence
from excise.model.load import auto_class_for, read_config, skeleton
from excise.model.locate import locate
from excise.model.shapes import without_dispatch


def outline(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    evidence: Sequence[Evidence] = (),
    allow_partial: bool = False,
) -> EditableModel:
    """The architecture of a model, in no more memory than its names take: it can be surveyed, and nothing else.

    Of a model on the Hub only the small files are downloaded. Raises `ModelError`.
    """
    directory = locate(str(name_or_path), revision=revision, offline=offline, weights=False)
    config = read_config(directory, trust_remote_code)
    architecture = skeleton(config, auto_class_for(config, directory), trust_remote_code=trust_remote_code)
    return EditableModel(
        without_dispatch(architecture),
        name=str(name_or_path),
        revision=revision,
        evidence=evidence,
        allow_partial=allow_partial,
    )
