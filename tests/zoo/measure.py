"""What is measured of one architecture: the row of docs/architectures.md."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import excise
from excise import Edit, EditableModel
from excise.model import probe
from excise.model.causal import causal_tokens
from excise.model.forward import padding_is_exact
from excise.model.inputs import run
from zoo.build import OBLONG, SQUARE, build

NOT_LOADED = {
    "gemma3n": "its vision tower needs timm: built in memory, not read from disk",
    "shieldgemma2": "Transformers does not find the weights that it saved itself: built in memory",
}
"""Architectures whose checkpoints cannot be read with the packages that the tests install."""


_ROUTER = re.compile(r"router|(^|[._])gate([._]|$)|gating")


@dataclass(frozen=True)
class Row:
    """One architecture, over both head sizes and both ways of storing it (the worse value counts).

    writers     how many of each role
    leak        of the probe, live
    baked       of the probe, baked into the checkpoint and read back by stock Transformers
    difference  between the logits of live edits (with and without kept norms) and those of the baked models, as a share
                of the largest logit
    unnoticed   writers whose absence from the survey the probe does not notice
    routers     writers that are named like a router or a gate
    padded      whether left-padded batches give the residuals of single rows; else batches are of one length
    refused     why the survey is not a proof; empty for a model that is covered
    notes       what is unusual about its writes
    """

    kind: str
    writers: tuple[tuple[str, int], ...]
    leak: float
    baked: float | None
    difference: float | None
    unnoticed: tuple[str, ...]
    routers: tuple[str, ...]
    padded: bool
    refused: tuple[str, ...]
    notes: tuple[str, ...]


def measure(kind: str, folder: Path) -> Row:
    """Build the architecture twice, store it in one file and in shards, and measure everything."""
    one, other = (_measure(kind, head_dim, folder / str(head_dim)) for head_dim in (SQUARE, OBLONG))
    return Row(
        kind=kind,
        writers=one["writers"],
        leak=max(one["leak"], other["leak"]),
        baked=None if one["baked"] is None else max(one["baked"], other["baked"]),
        difference=None if one["difference"] is None else max(one["difference"], other["difference"]),
        unnoticed=(*one["unnoticed"], *other["unnoticed"]),
        routers=(*one["routers"], *other["routers"]),
        padded=one["padded"] and other["padded"],
        refused=tuple(dict.fromkeys((*one["refused"], *other["refused"]))),
        notes=tuple(dict.fromkeys((*one["notes"], *other["notes"]))),
    )


def _measure(kind: str, head_dim: int, folder: Path) -> dict[str, Any]:
    if kind in NOT_LOADED:
        model = EditableModel(build(kind, head_dim=head_dim), name=kind, allow_partial=True)
    else:
        shards = {"max_shard_size": "200KB"} if head_dim == OBLONG else {}
        build(kind, head_dim=head_dim).save_pretrained(folder / "base", **shards)
        model = excise.load(folder / "base", dtype="float32", allow_partial=True)
    survey = model.survey
    direction = torch.randn(survey.hidden, generator=torch.Generator().manual_seed(7))
    row: dict[str, Any] = {
        "writers": tuple(sorted(Counter(writer.role for writer in survey.writers).items())),
        "leak": model.leak(direction),
        "baked": None,
        "difference": None,
        "routers": tuple(writer.parameter for writer in survey.writers if _ROUTER.search(writer.parameter)),
        "padded": padding_is_exact(model),
        "refused": tuple(dict.fromkeys(item.reason for item in survey.unresolved)),
        "notes": _notes(kind, model, fixed=model.prove().fixed > 0),
        "unnoticed": () if survey.unresolved else _unnoticed(model),
    }
    if model.path is not None:
        row |= _bake(model, direction, folder)
    return row


def _unnoticed(model: EditableModel) -> tuple[str, ...]:
    survey = model.survey
    return tuple(
        writer.parameter
        for writer in survey.writers
        if probe.leak(model.hf_model, survey.without(writer.parameter)) <= model.leak_tolerance
    )


def _bake(model: EditableModel, direction: Tensor, folder: Path) -> dict[str, float]:
    """The probe itself, and a weaker edit that keeps norms: baked, read back, and compared with the live edit."""
    survey = model.survey
    edits = (
        Edit.project(survey, direction, embedding=True),
        Edit.project(survey, direction.flip(0), strength=0.7, norm="column"),
    )
    tokens = causal_tokens(model.hf_model, rows=2, length=12, seed=3)
    leak, difference = 0.0, 0.0
    for number, edit in enumerate(edits):
        with model.edited(edit):
            live = _logits(model, tokens)
        out = folder / f"baked-{number}"
        excise.bake(folder / "base", edit, out)
        baked = excise.load(out, dtype="float32")
        difference = max(difference, float((_logits(baked, tokens) - live).abs().max() / live.abs().max()))
        if number == 0:
            leak = probe.measure(baked.hf_model, survey, direction).varying
    return {"baked": leak, "difference": difference}


@torch.no_grad()
def _logits(model: EditableModel, tokens: Tensor) -> Tensor:
    logits = run(model.hf_model, tokens).logits.float()
    return logits.masked_fill(~torch.isfinite(logits) | (logits < -1e30), 0.0)  # tokens that a model never predicts


def _notes(kind: str, model: EditableModel, *, fixed: bool) -> tuple[str, ...]:
    survey = model.survey
    notes = []
    if any(writer.gain for writer in survey.writers):
        notes.append("gain between write and stream")
    most = max((len(paths) for paths in survey.paths.values()), default=1)
    if most > 1:
        notes.append(f"up to {most} directions a writer")
    if any(writer.tied for writer in survey.writers):
        notes.append("tied head")
    if fixed:
        notes.append("fixed positions stay")
    if kind in NOT_LOADED:
        notes.append(NOT_LOADED[kind])
    return tuple(notes)
