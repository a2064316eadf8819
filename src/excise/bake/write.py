"""Baking: the edited checkpoint, written tensor by tensor beside the original bytes."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import excise
from excise.bake.source import PlannedTensor, Source
from excise.bake.staging import check_free, check_room, staged
from excise.bake.threads import workers
from excise.edit import Change, Edit, Mask, Projection, SiteEdit
from excise.errors import CheckpointError, InputError
from excise.model.checkpoint import Shard
from excise.progress import Progress, silent

if TYPE_CHECKING:
    from excise.model import EditableModel

RECORD = "excise.json"
_CHUNK = 8 * 2**20
_RANGE = 128 * 2**20  # bytes copied by one thread at a time


@dataclass(frozen=True)
class BakeReport:
    """What a bake did.

    edited   checkpoint key of every changed tensor -> the parameter it belongs to
    copied   side files; `skipped`: weight files in other formats, which would carry the behavior along unedited
    """

    out: Path
    base: str
    edited: Mapping[str, str]
    tensors: int
    bytes: int
    edited_bytes: int
    copied: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "out": str(self.out)}


def bake(
    model: str | Path | EditableModel,
    edit: Edit | str | Path,
    out: str | Path,
    *,
    force: bool = False,
    revision: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> BakeReport:
    """Write the edited model to the new directory `out`: same shards, keys, dtypes and side files, other weights.

    Only the edited tensors are computed (in fp32, rounded once); every other byte is copied. Memory stays at a few
    hundred megabytes whatever the size of the model. `out` appears when it is whole, and not before: a killed bake
    leaves a hidden scratch directory at most, which the next one removes.

    model   a local directory, a Hub id (`revision`, `offline`), or a loaded model that came from one
    edit    an `Edit`, or the path of one
    force   bake although the weights are not those that the edit was made for (the architecture must be)

    Raises `OutputExistsError`, `EditError`, `EditMismatchError`, `ModelError`, `CheckpointError`, `DiskFullError`; then
    nothing was written.
    """
    started = time.monotonic()
    out = Path(out)
    check_free(out)
    edit = edit if isinstance(edit, Edit) else Edit.load(edit)
    source = Source.open(model, revision=revision, offline=offline, trust_remote_code=trust_remote_code)
    if out.absolute().is_relative_to(source.directory.absolute()):
        raise InputError(f"{out} is inside the model's own directory", hint="give an --out beside it")
    planned = source.plan(edit, force=force)
    copied, skipped = source.side_files()
    side_bytes = sum((source.directory / name).stat().st_size for name in copied)
    check_room(out, source.checkpoint.size + side_bytes)
    with staged(out) as scratch:
        _write_weights(source, planned, scratch, progress)
        _write_text(scratch / RECORD, json.dumps(_record(source, edit, planned), indent=2) + "\n")
        for name in copied:  # index and configuration come last
            if name != RECORD:
                _copy_file(source.directory / name, scratch / name)
    return BakeReport(
        out=out,
        base=source.name,
        edited={key: tensor.edit.parameter for key, tensor in planned.items()},
        tensors=len(source.checkpoint.tensors),
        bytes=source.checkpoint.size,
        edited_bytes=sum(tensor.entry.size for tensor in planned.values()),
        copied=copied,
        skipped=skipped,
        seconds=time.monotonic() - started,
    )


def _write_weights(source: Source, planned: Mapping[str, PlannedTensor], target: Path, progress: Progress) -> None:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("bake", done, source.checkpoint.size, "B")

    with workers() as pool:
        syncing = []
        for shard in source.checkpoint.shards:
            _write_shard(shard, target / shard.name, planned, pool, advance)
            syncing.append(pool.submit(_sync, target / shard.name))  # while the next shard is computed
        for task in syncing:
            task.result()


def _write_shard(
    shard: Shard,
    target: Path,
    planned: Mapping[str, PlannedTensor],
    pool: Executor,
    advance: Callable[[int], None],
) -> None:
    """The shard with the planned tensors replaced. Header and layout stay: every tensor keeps its dtype and shape."""
    target.parent.mkdir(parents=True, exist_ok=True)
    before = shard.path.stat()
    with target.open("xb") as file:
        file.truncate(shard.size)
    jobs: dict[Future[None], int] = {}
    copied_to = 0
    for entry in shard.tensors:
        if entry.key in planned:
            jobs |= _copy_jobs(shard, target, copied_to, entry.start, pool)
            jobs[pool.submit(_write_tensor, shard.path, target, planned[entry.key])] = entry.size
            copied_to = entry.start + entry.size
    jobs |= _copy_jobs(shard, target, copied_to, shard.size, pool)
    for job in as_completed(jobs):
        job.result()
        advance(jobs[job])
    after = shard.path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise CheckpointError(f"{shard.path} was changed while it was read", hint="bake again when it is at rest")


def _copy_jobs(shard: Shard, target: Path, start: int, end: int, pool: Executor) -> dict[Future[None], int]:
    cuts = [*range(start, end, _RANGE), end]
    return {pool.submit(_copy_range, shard.path, target, one, other): other - one for one, other in pairwise(cuts)}


def _write_tensor(source: Path, target: Path, tensor: PlannedTensor) -> None:
    with source.open("rb", buffering=0) as base, target.open("rb+", buffering=0) as file:
        for piece in tensor.format.pieces(base, tensor.entry, tensor.edit):
            if not piece.finite:
                raise CheckpointError(
                    f"{tensor.entry.key} would hold NaN or infinity",
                    hint="the base weight does already, or the edit overflows its dtype: use a lower strength",
                )
            file.seek(piece.start)
            _write_all(file, piece.data)


def _copy_range(source: Path, target: Path, start: int, end: int) -> None:
    """Copy the bytes from `start` to `end` to the same place, inside the kernel where it can."""
    in_kernel = hasattr(os, "copy_file_range")
    with source.open("rb", buffering=0) as base, target.open("rb+", buffering=0) as file:
        while start < end:
            count = min(_CHUNK, end - start)
            if in_kernel:
                try:
                    count = os.copy_file_range(base.fileno(), file.fileno(), count, start, start)
                except OSError:
                    in_kernel = False  # other file systems, or a full disk: the plain copy finds out
                    continue
            else:
                base.seek(start)
                data = base.read(count)
                file.seek(start)
                _write_all(file, memoryview(data))
                count = len(data)
            if count == 0:
                raise CheckpointError(f"{source} became shorter while it was read", hint="do not change it meanwhile")
            start += count


def _write_all(file: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    _sync(target)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    _sync(path)


def _record(source: Source, edit: Edit, planned: Mapping[str, PlannedTensor]) -> dict[str, Any]:
    """What `excise.json` says about a baked model; the same bake writes the same bytes."""
    return {
        "excise": excise.__version__,
        "base": {"name": source.name, "revision": source.revision},
        "edit": {
            "identity": asdict(edit.identity),
            "sites": [_site(site) for site in edit.sites],
            "provenance": dict(edit.provenance),
            "scores": dict(edit.scores),
        },
        "edited": sorted(planned),
        "versions": {name: version(name) for name in ("torch", "transformers", "safetensors")},
    }


def _site(site: SiteEdit) -> dict[str, Any]:
    return {
        "parameter": site.writer.parameter,
        "layer": site.writer.layer,
        "role": site.writer.role,
        "axis": site.writer.axis,
        "changes": [_change(change) for change in site.changes],
    }


def _change(change: Change) -> dict[str, Any]:
    if isinstance(change, Projection):
        return {"kind": "projection", "strength": change.strength, "norm": change.norm, "rank": len(change.directions)}
    if isinstance(change, Mask):
        scale = change.scale
        return {"kind": "mask", "shape": list(scale.shape), "masked": int((scale != 1).sum())}
    return {"kind": "low-rank", "rank": change.left.shape[-1]}
