"""The seal of the report split: every read of it is logged, so that a second one is known and shown.

Figures on prompts that nothing was chosen by are worth more than figures on prompts that were looked at before. A read
is one measurement with one edit and one set of settings; the same one again, as after Ctrl-C, is not another. Reads are
kept in `seal.json` of the run directory, by the SHA-256 of the prompts, and in the folder that EXCISE_CACHE names. What
counts are the reads in there and in the directories beside the run's own.
"""

from __future__ import annotations

import errno
import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from excise.errors import InputError
from excise.runs import key, shared_folder, write_json

FILE = "seal.json"
_SCHEMA = 1
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Read:
    """One read of the report split.

    id       a hash of all that makes it this one
    digest   of the prompts
    model    of the base model: a hash of its architecture and weights
    edit     what the edit does, as a hash; None: no edit
    command  that read
    run      the name of the run's directory
    when     in UTC
    """

    id: str
    digest: str
    model: str
    edit: str | None
    command: str
    run: str
    when: str


@dataclass(frozen=True)
class Reads:
    """All reads of one set of prompts that are known, the earliest first, and which of them is `current`.

    reads   with the same base model
    others  with other models: prompts that were looked at, though not by way of this model
    """

    current: Read
    reads: tuple[Read, ...]
    others: tuple[Read, ...]

    @property
    def number(self) -> int:
        """Which read the current one is, counted from 1."""
        return 1 + [each.id for each in self.reads].index(self.current.id)

    @property
    def unseen(self) -> bool:
        """Whether the prompts were unseen with this model when the current figures were made."""
        return self.number == 1

    @property
    def note(self) -> str:
        """The seal in a sentence."""
        times = "once" if len(self.reads) == 1 else f"{len(self.reads)} times"
        said = f"report split read {times}"
        if not self.unseen:
            said += ": figures are no longer of unseen prompts"
        elif len(self.reads) > 1:
            said += "; these figures are of the first read"
        models = len({each.model for each in self.others})
        beside = "" if not models else f" (and for {models} other model{'s' if models > 1 else ''})"
        return said + beside

    def to_json(self) -> dict[str, Any]:
        """`digest`, `reads`, `number`, `unseen`, `other_models`, `note` and the `log`, without any path."""
        return {
            "digest": self.current.digest,
            "reads": len(self.reads),
            "number": self.number,
            "unseen": self.unseen,
            "other_models": len({each.model for each in self.others}),
            "note": self.note,
            "log": [
                {"when": each.when, "command": each.command, "run": each.run, "edit": each.edit} for each in self.reads
            ],
        }


def read_report(
    directory: Path | None, *, digest: str, model: str, edit: str | None, command: str, settings: object = None
) -> Reads:
    """Log that the report split is read for what is in `directory`, and tell which reads of it are known.

    directory  None: of no run; then it is known by the folder that runs share alone
    digest     of the prompts (`Splits.digest()`)
    model      a hash of the base model
    settings   JSON values that make the read another one where they differ

    The log is written before anything is measured: a measurement that was begun counts. Where the directory belongs to
    somebody else nothing is written. Raises `InputError` for a log that cannot be read, `DiskFullError`.
    """
    what = (digest, model, edit, command, settings)
    try:
        if directory is None:
            current = _new(key(list(what)), None, *what[:-1])
            _share(current)
        else:
            current = _logged(directory, *what)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        current = _new(key(list(what)), directory, *what[:-1])
    return _collect(directory, current)


def _logged(directory: Path, digest: str, model: str, edit: str | None, command: str, settings: object) -> Read:
    """The read as it is in the log, where it is entered if it is not there yet."""
    own = directory / FILE
    with FileLock(directory / ".seal.lock"):
        content = _load(own) or {"schema": _SCHEMA, "run": uuid.uuid4().hex, "reads": []}
        identity = key([content["run"], digest, model, edit, command, settings])
        known = {each.id: each for each in _reads(content)}
        if identity not in known:
            known[identity] = _new(identity, directory, digest, model, edit, command)
            write_json(own, {**content, "reads": [asdict(each) for each in known.values()]})
        _share(known[identity])
        return known[identity]


def _new(identity: str, directory: Path | None, digest: str, model: str, edit: str | None, command: str) -> Read:
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return Read(identity, digest, model, edit, command, "" if directory is None else directory.resolve().name, now)


def _collect(directory: Path | None, current: Read) -> Reads:
    """Every read of the same prompts, in here, beside here, and in the folder that runs share."""
    beside = [] if directory is None else directory.resolve().parent.glob(f"*/{FILE}")
    found: dict[str, Read] = {}
    for path in (*beside, *_shared(current.digest)):
        for each in _reads(_load_foreign(path)):
            if each.digest == current.digest:
                found.setdefault(each.id, each)
    current = found.setdefault(current.id, current)
    ordered = sorted(found.values(), key=lambda each: (each.when, each.id))
    same = tuple(each for each in ordered if each.model == current.model)
    return Reads(current, same, tuple(each for each in ordered if each.model != current.model))


def _share(current: Read) -> None:
    for path in _shared(current.digest):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            known = {each.id: each for each in _reads(_load_foreign(path))}
            if current.id not in known:
                known[current.id] = current
                write_json(path, {"schema": _SCHEMA, "reads": [asdict(each) for each in known.values()]})


def _shared(digest: str) -> Iterator[Path]:
    folder = shared_folder()
    if folder:
        yield folder / "seals" / f"{digest}.json"


def _load(path: Path) -> dict[str, Any] | None:
    """A log of our own; None where there is none yet."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _reads(content)
        return {"schema": int(content["schema"]), "run": str(content["run"]), "reads": list(content["reads"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read: how often the report split was looked at is not known",
            hint="put the file back as it was; or choose another directory: --out DIR",
        ) from error


def _load_foreign(path: Path) -> dict[str, Any]:
    """Somebody else's log; empty where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _reads(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"reads": []}
    assert isinstance(content, dict)
    return content


def _reads(content: dict[str, Any]) -> list[Read]:
    return [Read(**each) for each in content["reads"]]
