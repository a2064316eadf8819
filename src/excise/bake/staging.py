"""An output directory that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from excise.errors import DiskFullError, InputError, OutputExistsError

_MARK = ".partial-"
_RESERVE = 16 * 2**20


def check_free(out: Path) -> None:
    """Raise `OutputExistsError` where something has the name already."""
    if os.path.lexists(out):
        raise OutputExistsError(f"{out} exists", hint="give another --out, or remove it first")


def check_room(out: Path, needed: int) -> None:
    """Raise `DiskFullError` unless `needed` bytes fit where `out` will be."""
    existing = next(parent for parent in out.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed + _RESERVE:
        raise DiskFullError(
            f"{existing} has {_size(free)} free; the baked model needs {_size(needed + _RESERVE)}",
            hint="free some space, or give an --out on another disk",
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A scratch directory beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    What a killed run left behind is removed first. Raises `OutputExistsError`, `DiskFullError` (also when the disk
    fills up inside the block), `InputError` where nothing can be written.
    """
    check_free(out)
    out = out.absolute()
    with _explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        scratch = out.parent / f".{out.name}{_MARK}{os.getpid()}-{secrets.token_hex(4)}"
        scratch.mkdir()
        lock = _lock(scratch)
        try:
            yield scratch
            sync_directories(scratch)
            check_free(out)
            scratch.rename(out)
            sync_directory(out.parent)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        finally:
            if lock is not None:
                os.close(lock)


def sync_directories(root: Path) -> None:
    """Make sure that the names in a tree of directories are on the disk."""
    for folder, _, _ in os.walk(root, topdown=False):
        sync_directory(Path(folder))


def sync_directory(folder: Path) -> None:
    """Make sure that the names in a directory are on the disk (where the system can)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(out: Path) -> None:
    for leftover in out.parent.iterdir():
        if not leftover.name.startswith(f".{out.name}{_MARK}") or not leftover.is_dir():
            continue
        lock = _lock(leftover)
        if lock is not None:  # its process is gone: a living one holds the lock
            os.close(lock)
            shutil.rmtree(leftover, ignore_errors=True)


def _lock(folder: Path) -> int | None:
    """Lock a directory for this process; None where another holds it, or the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise DiskFullError(
                f"the disk of {out.parent} filled up; nothing was left behind",
                hint="free some space, or give an --out on another disk",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            path = error.filename or out
            raise InputError(f"{path} cannot be used ({error.strerror})", hint="check permissions, or --out") from error
        raise
