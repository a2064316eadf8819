"""The run directory: what a run was asked, what each stage found, and how the next call goes on from there.

    manifest.json          the settings, a hash of them, versions, when it began
    stages/NAME-KEY/       one stage; KEY is a hash of all it depends on
        value.json         what it found; written last, so a stage with a value is whole
        ...                its files

Every file gets its name only when it is whole, so a run that is killed at any moment resumes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from excise.errors import (
    BehaviorNotShownError,
    DiskFullError,
    EditError,
    InputError,
    ModelError,
    OutputExistsError,
)

SCHEMA = 1
_LOCK = ".lock"
_MANIFEST = "manifest.json"
_VALUE = "value.json"
_BAD_INPUT = (InputError, ModelError, EditError, BehaviorNotShownError)


def key(inputs: object) -> str:
    """A short hash of JSON values: the same inputs, the same key."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shared_folder() -> Path | None:
    """The folder that EXCISE_CACHE names, where runs share what they measured; None where it is not set."""
    named = os.environ.get("EXCISE_CACHE")
    return Path(named).expanduser() if named else None


def versions() -> dict[str, str]:
    """The versions of this package and of those that shape its results."""
    found = {}
    for package in ("excise", "torch", "transformers", "safetensors", "optuna", "datasets", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A scratch path next to `path` (same suffix); what is written there becomes `path` when the block ends well.

    Raises `DiskFullError` when the disk is full; then, as after any error, nothing stays.
    """
    scratch = path.with_name(f".partial-{os.getpid()}-{path.name}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield scratch
            with scratch.open("rb+") as file:
                os.fsync(file.fileno())
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all. Raises `DiskFullError`."""
    with writing(path) as scratch:
        scratch.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """JSON values with None for every number that is not finite: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into `DiskFullError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"no room left on the disk of {path.parent}",
                hint="make room and call the same command again: what is finished is kept; or choose another --out",
            ) from error
        raise


@dataclass(frozen=True)
class Stage:
    """One stage of a run, identified by its name and by a hash of all that it depends on."""

    name: str
    directory: Path

    @property
    def done(self) -> bool:
        """Whether it was finished, by this call or an earlier one."""
        return (self.directory / _VALUE).is_file()

    def load(self) -> Any:
        """What it found: the JSON value that `save` got."""
        return json.loads((self.directory / _VALUE).read_text(encoding="utf-8"))

    def save(self, value: object) -> None:
        """Record what it found, and that it is done. Its files must be there already."""
        write_json(self.directory / _VALUE, value)

    def path(self, name: str) -> Path:
        """The path of one of its files; the stage's directory is made for it."""
        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        return self.directory / name


class RunDirectory:
    """A run's directory, held by one process at a time: use it as a context manager, made by `open`.

    path      the directory
    manifest  what `manifest.json` holds
    resumed   whether the run was there already
    """

    def __init__(
        self, path: Path, manifest: Mapping[str, Any], *, resumed: bool, lock: FileLock, made: list[Path]
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.resumed = resumed
        self._lock = lock
        self._made = made

    @classmethod
    def open(cls, path: str | Path, *, config: Mapping[str, Any]) -> RunDirectory:
        """Make the directory, or go on in it where it holds a run with the same settings.

        config  the settings that shape the result, as JSON values (`RunConfig.identity()`)

        Raises `OutputExistsError` where it holds anything else, `InputError` where another process works in it or it
        cannot be made.
        """
        path = Path(path)
        _check(path, config)
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        lock = FileLock(path / _LOCK, timeout=0)
        try:
            with disk_errors(path):
                path.mkdir(parents=True, exist_ok=True)
                lock.acquire()
        except Timeout as error:
            raise InputError(
                f"another process works in {path}", hint="wait until it ends, or choose another directory: --out DIR"
            ) from error
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise InputError(f"cannot write to {path}: {error.strerror}", hint="choose another --out") from error
        try:
            manifest = _check(path, config)
            resumed = manifest is not None
            if manifest is None:
                created = datetime.now(UTC).isoformat(timespec="seconds")
                manifest = {"schema": SCHEMA, "created": created, "config": dict(config), "config_hash": key(config)}
                manifest["versions"] = versions()
                write_json(path / _MANIFEST, manifest)
        except BaseException:
            lock.release()
            raise
        return cls(path, manifest, resumed=resumed, lock=lock, made=made)

    def stage(self, name: str, inputs: object) -> Stage:
        """The stage called `name` that depends on `inputs` (JSON values)."""
        return Stage(name, self.path / "stages" / f"{name}-{key(inputs)}")

    def discard(self) -> None:
        """Remove the directory and all that is in it, and the empty ones above it that were made for it."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):  # something else may be in them by now
            for folder in self._made[1:]:
                folder.rmdir()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the directory. After a bad input, or a disk that was full from the start, nothing stays of a run
        that this call began."""
        nothing_done = isinstance(error, DiskFullError) and not (self.path / "stages").exists()
        if not self.resumed and (nothing_done or isinstance(error, _BAD_INPUT)):
            self.discard()
        self._lock.release()


def _check(path: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of the run in `path`; None where there is none and nothing else either."""
    if not path.exists():
        return None
    if not path.is_dir():
        raise OutputExistsError(f"{path} is a file", hint="choose another directory: --out DIR")
    present = [entry for entry in path.iterdir() if entry.name != _LOCK and not entry.name.startswith(".partial-")]
    if not present:
        return None
    other = "remove it, or choose another directory: --out DIR"
    if not (path / _MANIFEST).is_file():
        raise OutputExistsError(f"the directory {path} exists and is not a run of excise", hint=other)
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        before = dict(manifest["config"])
        schema = int(manifest["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise OutputExistsError(f"{path / _MANIFEST} cannot be read", hint=other) from error
    if schema != SCHEMA:
        raise OutputExistsError(f"{path} holds a run of another version of excise", hint=other)
    changed = sorted(name for name in {*before, *config} if before.get(name) != config.get(name))
    if changed:
        raise OutputExistsError(f"{path} holds a run with other settings: {', '.join(changed)}", hint=other)
    assert isinstance(manifest, dict)
    return manifest
