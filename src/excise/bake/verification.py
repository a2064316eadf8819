"""Verifying a bake: every byte accounted for, and the model behaves as the live edit does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from excise.bake import stored
from excise.bake.formats.plain import DTYPES
from excise.bake.keys import KeyMap
from excise.bake.live import compare, roundoff
from excise.bake.result import Check, VerifyReport
from excise.bake.source import PlannedTensor, Source
from excise.edit import Edit
from excise.errors import CheckpointError, ExciseError
from excise.model.checkpoint import Checkpoint
from excise.model.load import auto_class_for, read_config, skeleton
from excise.model.precision import LARGE
from excise.progress import Progress, silent

if TYPE_CHECKING:
    from excise.model import EditableModel

_EXACT = LARGE  # parameters up to which the comparison computes in fp32


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
    writers at strength 1 is measured. With `trust_remote_code`, the base's code is run; the baked model's only where
    its side files are identical.

    Raises `ExciseError` where `base` or `edit` themselves cannot be used.
    """
    out, edit = Path(out), edit if isinstance(edit, Edit) else Edit.load(edit)
    source = Source.open(base, revision=revision, offline=offline, trust_remote_code=trust_remote_code)
    planned = source.plan(edit, force=force)
    checks = [stored.side_files(source, out)]
    try:
        baked = Checkpoint.open(out)
    except CheckpointError as error:
        return VerifyReport((*checks, Check("headers", False, error.message)))
    headers = stored.headers(source.checkpoint, baked)
    checks.append(headers)
    if headers.passed:
        checks += stored.tensors(source.checkpoint, baked, planned, progress)
    if trust_remote_code and not checks[0].passed:
        return VerifyReport((*checks, Check("complete", False, "its code may be another than the base's: not run")))
    checks.append(_complete(source, baked, trust_remote_code))
    if not live or not all(check.passed for check in checks):
        return VerifyReport(tuple(checks))
    return _live(out, source, edit, planned, checks, force, trust_remote_code, progress)


def _complete(source: Source, baked: Checkpoint, trust_remote_code: bool) -> Check:
    """Whether every parameter of the architecture has its tensors, as in the base."""
    try:
        config = read_config(baked.directory, trust_remote_code)
        model = skeleton(config, auto_class_for(config, baked.directory), trust_remote_code=trust_remote_code)
    except (ExciseError, OSError, ValueError) as error:
        told = error.message if isinstance(error, ExciseError) else error
        return Check("complete", False, f"the configuration cannot be read ({told})")
    keys = KeyMap(model, {key: entry.shape for key, entry in baked.tensors.items()})
    new = sorted(set(keys.missing()) - set(source.keys.missing()))
    return Check(
        "complete", not new, stored.listed(new, "missing") or f"{len(keys.shapes)} parameters have their tensors"
    )


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
    dtypes = {tensor.entry.dtype for tensor in planned.values()} or {"F32"}
    unit = max(roundoff(DTYPES[dtype]) for dtype in dtypes)
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
        f"relative difference {difference.relative:.1e} (bound {difference.bound:.1e}), "
        f"largest {difference.largest:.1e}, KL {difference.kl:.1e} in {difference.dtype}"
    )
    close = difference.relative <= difference.bound
    checks.append(Check("logits equal the live edit's", close, detail, difference.relative))
    if result.leak is not None:
        bound = result.leak_bound
        detail = f"{result.leak:.1e} over {result.leak_sites} writers at strength 1 (bound {bound:.1e})"
        checks.append(Check("leak", result.leak <= bound, detail, result.leak))
    return VerifyReport(tuple(checks), result.leak, difference)
