"""The edit file: one `*.safetensors` with a JSON header.

Tensors are shared: a direction used by sixty writers is stored once. The header holds the schema version, the model it
was made for, the sites with their strengths, the provenance and the measured scores. Later versions may add keys to the
header; a reader ignores those it does not know, and refuses a higher schema version.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from excise.edit.change import Change, LowRank, Mask, Projection
from excise.edit.edit import Edit, ModelIdentity, SiteEdit
from excise.edit.writer import Writer
from excise.errors import EditError

SCHEMA = 1
_HEADER = "excise_edit"


def save(edit: Edit, path: Path) -> None:
    """Write `edit` to `path` atomically."""
    tensors: dict[str, Tensor] = {}
    header = {
        "schema": SCHEMA,
        "identity": asdict(edit.identity),
        "sites": [
            {
                "writer": site.writer.to_json(),
                "changes": [_change_to_json(change, tensors) for change in site.changes],
            }
            for site in edit.sites
        ],
        "provenance": dict(edit.provenance),
        "scores": dict(edit.scores),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # safetensors wants at least one tensor: the no-op edit stores an empty one.
    payload = tensors or {"empty": torch.zeros(0)}
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(payload, scratch, metadata={_HEADER: json.dumps(header)})
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def load(path: Path) -> Edit:
    """Read an edit file; `EditError` says what is wrong with one that is not."""
    if not path.is_file():
        raise EditError(f"no edit file at {path}", hint="give the path of a .safetensors file that `excise` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()} if _HEADER in metadata else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise EditError(
            f"{path} is not a readable safetensors file ({error})", hint="it may be truncated: make the edit again"
        ) from error
    if _HEADER not in metadata:
        raise EditError(
            f"{path} holds weights, not an edit", hint="edit files come from `excise run` or `excise search`"
        )
    try:
        return _edit_from_json(json.loads(metadata[_HEADER]), tensors, path)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise EditError(f"the header of {path} is damaged ({error!r})", hint="make the edit again") from error


def _edit_from_json(header: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> Edit:
    if header["schema"] > SCHEMA:
        raise EditError(f"{path} was written by a newer excise (schema {header['schema']})", hint="upgrade excise")
    sites = tuple(
        SiteEdit(
            Writer.from_json(site["writer"]), tuple(_change_from_json(change, tensors) for change in site["changes"])
        )
        for site in header["sites"]
    )
    known = {key: value for key, value in header["identity"].items() if key in ModelIdentity.__dataclass_fields__}
    return Edit(sites, ModelIdentity(**known), header["provenance"], header["scores"])


def _change_to_json(change: Change, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if isinstance(change, Projection):
        return {
            "kind": "projection",
            "directions": _store(change.directions, tensors),
            "strength": change.strength,
            "norm": change.norm,
        }
    if isinstance(change, Mask):
        return {"kind": "mask", "scale": _store(change.scale, tensors)}
    return {"kind": "low-rank", "left": _store(change.left, tensors), "right": _store(change.right, tensors)}


def _change_from_json(data: dict[str, Any], tensors: dict[str, Tensor]) -> Change:
    if data["kind"] == "projection":
        return Projection(tensors[data["directions"]], data["strength"], data["norm"])
    if data["kind"] == "low-rank":
        return LowRank(tensors[data["left"]], tensors[data["right"]])
    if data["kind"] == "mask":
        return Mask(tensors[data["scale"]])
    raise EditError(f"this excise does not know the change '{data['kind']}'", hint="upgrade excise")


def _store(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    array = tensor.detach().cpu().contiguous()
    kind = f"{array.dtype} {tuple(array.shape)} ".encode()
    key = hashlib.sha256(kind + array.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    tensors[key] = array
    return key
