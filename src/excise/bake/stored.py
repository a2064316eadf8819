"""What is stored in a baked model, compared with its base byte by byte; nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from excise.bake.formats.plain import DTYPES
from excise.bake.result import Check
from excise.bake.source import PlannedTensor, Source
from excise.bake.threads import one_thread_each
from excise.bake.write import RECORD
from excise.model.checkpoint import Checkpoint
from excise.progress import Progress

_CHUNK = 8 * 2**20
_CARD = "README.md"  # the model card may be written anew after the bake


def side_files(source: Source, out: Path) -> Check:
    """Tokenizer, template, configuration, licence, code: identical in the baked model."""
    copied, _ = source.side_files()
    compared = [name for name in copied if name != RECORD]
    different = [name for name in compared if not _same_file(source.directory / name, out / name)]
    rewritten = different == [_CARD] and (out / _CARD).is_file()
    if different and not rewritten:
        return Check("side files", False, f"differ or are missing: {', '.join(different[:5])}")
    detail = f"{len(compared)} files identical" + (" (except the model card)" if rewritten else "")
    return Check("side files", True, detail)


def headers(base: Checkpoint, baked: Checkpoint) -> Check:
    """Same shards, keys, order, dtypes, shapes and metadata."""
    if [shard.name for shard in base.shards] != [shard.name for shard in baked.shards]:
        return Check("headers", False, "the shards have other names")
    for mine, theirs in zip(base.shards, baked.shards, strict=True):
        if mine.tensors != theirs.tensors:
            return Check("headers", False, f"{mine.name} holds other keys, dtypes, shapes, or another order")
        with mine.path.open("rb") as one, theirs.path.open("rb") as other:
            if one.read(mine.header) != other.read(theirs.header):
                return Check("headers", False, f"the header of {mine.name} differs")
    return Check("headers", True, f"{len(base.tensors)} keys in {len(base.shards)} files, in the same order")


@dataclass
class _Tally:
    """Mutable counts of the comparison of all tensors."""

    untouched: int = 0
    edited: int = 0
    changed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    infinite: list[str] = field(default_factory=list)
    off_by_one: int = 0


def tensors(
    base: Checkpoint, baked: Checkpoint, planned: Mapping[str, PlannedTensor], progress: Progress
) -> tuple[Check, ...]:
    """Untouched tensors identical byte for byte; edited ones equal to a recomputation, and finite.

    Another processor may add up a sum in another order: an element may be off by the rounding of fp32 arithmetic at the
    size of the largest one beside it, and one in a thousand by one step of its dtype.
    """
    tally, done = _Tally(), 0
    with one_thread_each():  # as the bake did, to the last bit
        for mine, theirs in zip(base.shards, baked.shards, strict=True):
            with mine.path.open("rb", buffering=0) as source, theirs.path.open("rb", buffering=0) as file:
                for entry in mine.tensors:
                    tensor = planned.get(entry.key)
                    if tensor is not None:
                        _compare_edited(source, file, tensor, tally)
                    elif _same_range(source, file, entry.start, entry.size):
                        tally.untouched += 1
                    else:
                        tally.changed.append(entry.key)
                    done += entry.size
                    progress("verify", done, base.size, "B")
    return _tensor_checks(tally)


def _compare_edited(source: BinaryIO, file: BinaryIO, tensor: PlannedTensor, tally: _Tally) -> None:
    tally.edited += 1
    wrong = off_by_one = 0
    finite = True
    for piece in tensor.format.pieces(source, tensor.entry, tensor.edit):
        finite = finite and piece.finite
        file.seek(piece.start)
        written = _read(file, len(piece.data))
        if written != piece.data:
            more, steps = _differing(memoryview(written), piece.data, tensor.entry.dtype)
            wrong, off_by_one = wrong + more, off_by_one + steps
    elements = math.prod(tensor.entry.shape)
    if wrong or off_by_one > elements // 1000:
        tally.wrong.append(tensor.entry.key)
    else:
        tally.off_by_one += off_by_one
    if not finite:
        tally.infinite.append(tensor.entry.key)


_ARITHMETIC = 8 * float(torch.finfo(torch.float32).eps)


def _differing(one: memoryview, other: memoryview, dtype: str) -> tuple[int, int]:
    """How many elements differ by more than rounding explains, and how many by exactly one step of their dtype."""
    kind = DTYPES[dtype]
    whole = torch.int32 if kind.itemsize == 4 else torch.int16
    mine, theirs = (torch.frombuffer(bytearray(data), dtype=whole) for data in (one, other))
    steps = (mine.long() - theirs.long()).abs()
    exact, written = theirs.view(kind).double(), mine.view(kind).double()
    explained = (written - exact).abs() <= _ARITHMETIC * exact.abs().max()
    return int(((steps > 1) & ~explained).sum()), int(((steps == 1) & ~explained).sum())


def _tensor_checks(tally: _Tally) -> tuple[Check, ...]:
    rounding = f"; {tally.off_by_one} elements rounded the other way" if tally.off_by_one else ""
    return (
        Check(
            "untouched tensors",
            not tally.changed,
            listed(tally.changed, "changed") or f"{tally.untouched} tensors identical byte for byte",
        ),
        Check(
            "edited tensors",
            not tally.wrong,
            listed(tally.wrong, "not what the edit makes of them")
            or f"{tally.edited} tensors equal to the recomputed ones{rounding}",
        ),
        Check("finite", not tally.infinite, listed(tally.infinite, "hold NaN or infinity") or "no NaN, no infinity"),
    )


def listed(keys: list[str], what: str) -> str:
    """The first keys and what is wrong with them; nothing for no keys."""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{', '.join(keys[:3])}{more}: {what}" if keys else ""


def _same_file(one: Path, other: Path) -> bool:
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb", buffering=0) as first, other.open("rb", buffering=0) as second:
        return _same_range(first, second, 0, one.stat().st_size)


def _same_range(one: BinaryIO, other: BinaryIO, start: int, size: int) -> bool:
    one.seek(start)
    other.seek(start)
    while size:
        count = min(_CHUNK, size)
        if _read(one, count) != _read(other, count):
            return False
        size -= count
    return True


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    while len(data) < count:
        more = file.read(count - len(data))
        if not more:
            break
        data += more
    return data
