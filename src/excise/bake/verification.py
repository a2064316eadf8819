"""Verifying a bake: every byte accounted for, and the model behaves as the live edit does."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from excise.bake.keys import KeyMap, skeleton
from excise.bake.source import PlannedTensor, Source
from excise.bake.threads import one_thread_each
from excise.bake.write import RECORD
from excise.edit import Edit
from excise.errors import CheckpointError, ExciseError
from excise.model.checkpoint import Checkpoint, Shard
from excise.progress import Progress, silent

if TYPE_CHECKING:
    from excise.bake.live import Difference
    from excise.model import EditableModel

_CHUNK = 8 * 2**20
_EXACT = 1_000_000_000  # parameters up to which the comparison computes in fp32
_CARD = "README.md"  # the model card may be written anew after the bake
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass(frozen=True)
class Check:
    """One thing that was checked; `value` is what was measured, where it is a number."""

    name: str
    passed: bool
    detail: str
    value: float | None = None


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`.

    leak               largest |v·y| / ‖y‖ of what a writer writes, over tokens and the writers whose directions are
                       removed at strength 1; None where there is no such writer, or no forward pass was made
    logits_difference  first-token logits of the baked model against the base with the edit live; None likewise
    """

    checks: tuple[Check, ...]
    leak: float | None = None
    logits_difference: Difference | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        difference = None if self.logits_difference is None else asdict(self.logits_difference)
        checks = [asdict(check) for check in self.checks]
        return {"passed": self.passed, "checks": checks, "leak": self.leak, "logits_difference": difference}


def verify(
    out: str | Path,
    *,
    base: str | Path | EditableModel,
    edit: Edit | str | Path,
    live: bool = True,
    force: bool = False,
    revision: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> VerifyReport:
    """Check a baked model against its base and the edit. A failed check is in the report, not an exception.

    Without loading anything: side files identical; index, headers and key order as in the base; every untouched tensor
    identical byte for byte; every edited tensor equal to a recomputation, and finite; every parameter has its tensors.
    With `live`, base and baked model are loaded one after the other: the result loads in stock Transformers, its
    first-token logits equal those of the base with the edit live up to the rounding of the weights, and the leak of the
    writers at strength 1 is measured.

    Raises `ExciseError` where `base` or `edit` themselves cannot be used.
    """
    out, edit = Path(out), edit if isinstance(edit, Edit) else Edit.load(edit)
    source = Source.open(base, revision=revision, offline=offline, trust_remote_code=trust_remote_code)
    planned = source.plan(edit, force=force)
    checks = [_side_files(source, out)]
    try:
        baked = Checkpoint.open(out)
    except CheckpointError as error:
        return VerifyReport((*checks, Check("headers", False, error.message)))
    headers = _headers(source.checkpoint, baked)
    checks.append(headers)
    if headers.passed:
        with one_thread_each():  # as the bake did, to the last bit
            checks += _tensors(source.checkpoint, baked, planned, progress)
    checks.append(_complete(source, baked, trust_remote_code))
    if not live or not all(check.passed for check in checks):
        return VerifyReport(tuple(checks))
    return _live(out, source, edit, planned, checks, force, trust_remote_code, progress)


def _side_files(source: Source, out: Path) -> Check:
    copied, _ = source.side_files()
    compared = [name for name in copied if name != RECORD]
    different = [name for name in compared if not _same_file(source.directory / name, out / name)]
    rewritten = different == [_CARD] and (out / _CARD).is_file()
    if different and not rewritten:
        return Check("side files", False, f"differ or are missing: {', '.join(different[:5])}", len(different))
    detail = f"{len(compared)} files identical" + (" (except the model card)" if rewritten else "")
    return Check("side files", True, detail)


def _headers(base: Checkpoint, baked: Checkpoint) -> Check:
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
    changed: list[str] | None = None
    wrong: list[str] | None = None
    infinite: list[str] | None = None
    off_by_one: int = 0


def _tensors(
    base: Checkpoint, baked: Checkpoint, planned: Mapping[str, PlannedTensor], progress: Progress
) -> list[Check]:
    tally = _Tally(changed=[], wrong=[], infinite=[])
    assert tally.changed is not None
    done = 0
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
    assert tally.wrong is not None and tally.infinite is not None
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


def _differing(one: memoryview, other: memoryview, dtype: str) -> tuple[int, int]:
    """How many elements differ by more than one rounding step, and how many by exactly one."""
    whole = torch.int32 if dtype == "F32" else torch.int16
    steps = torch.frombuffer(bytearray(one), dtype=whole).long() - torch.frombuffer(bytearray(other), dtype=whole).long()
    return int((steps.abs() > 1).sum()), int((steps.abs() == 1).sum())


def _tensor_checks(tally: _Tally) -> list[Check]:
    assert tally.changed is not None and tally.wrong is not None and tally.infinite is not None
    rounding = f"; {tally.off_by_one} elements rounded the other way" if tally.off_by_one else ""
    return [
        Check(
            "untouched tensors",
            not tally.changed,
            _list(tally.changed, "changed") or f"{tally.untouched} tensors identical byte for byte",
        ),
        Check(
            "edited tensors",
            not tally.wrong,
            _list(tally.wrong, "not what the edit makes of them")
            or f"{tally.edited} tensors equal to the recomputed ones{rounding}",
        ),
        Check("finite", not tally.infinite, _list(tally.infinite, "hold NaN or infinity") or "no NaN, no infinity"),
    ]


def _list(keys: list[str], what: str) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{', '.join(keys[:3])}{more}: {what}" if keys else ""


def _complete(source: Source, baked: Checkpoint, trust_remote_code: bool) -> Check:
    """Whether every parameter of the architecture has its tensors, as in the base."""
    from excise.model.load import _auto_class, _config

    try:
        config = _config(baked.directory, trust_remote_code)
        model = skeleton(config, _auto_class(config, baked.directory), trust_remote_code=trust_remote_code)
    except (ExciseError, OSError, ValueError) as error:
        return Check("complete", False, f"the configuration cannot be read ({error})")
    keys = KeyMap(model, {key: entry.shape for key, entry in baked.tensors.items()})
    new = sorted(set(keys.missing()) - set(source.keys.missing()))
    return Check("complete", not new, _list(new, "missing") or f"{len(keys.shapes)} parameters have their tensors")


def _live(
    out: Path,
    source: Source,
    edit: Edit,
    planned: Mapping[str, PlannedTensor],
    checks: list[Check],
    force: bool,
    trust_remote_code: bool,
    progress: Progress,
) -> VerifyReport:
    from excise.bake.live import compare, roundoff

    dtypes = {tensor.entry.dtype for tensor in planned.values()} or {"F32"}
    unit = max(roundoff(_DTYPES[dtype]) for dtype in dtypes)
    parameters = sum(math.prod(entry.shape) for entry in source.checkpoint.tensors.values())
    result = compare(
        out,
        source.directory,
        edit,
        exact=parameters < _EXACT,
        unit=unit,
        force=force,
        trust_remote_code=trust_remote_code,
        progress=progress,
    )
    difference = result.difference
    checks.append(Check("loads", True, f"as {result.kind} in stock Transformers"))
    detail = (
        f"relative difference {difference.relative:.1e} (bound {difference.bound:.1e}), largest {difference.largest:.1e}, "
        f"KL {difference.kl:.1e} nats, over {difference.prompts} prompts in {difference.dtype}"
    )
    checks.append(Check("logits equal the live edit's", difference.relative <= difference.bound, detail, difference.relative))
    if result.leak is not None:
        bound = result.leak_bound
        detail = f"{result.leak:.1e} over {result.leak_sites} writers at strength 1 (bound {bound:.1e})"
        checks.append(Check("leak", result.leak <= bound, detail, result.leak))
    return VerifyReport(tuple(checks), result.leak, difference)


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
