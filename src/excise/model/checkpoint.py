"""Checkpoints on disk: what lies where in a directory of safetensors files, from the headers alone.

No tensor is read here, nothing is unpickled, and every number in a header is checked before it is believed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from excise.errors import CheckpointError
from excise.model.identity import checkpoint_hash, config_hash, model_identity
from excise.model.locate import locate

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_LARGEST_HEADER = 100_000_000  # the limit of the safetensors library
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
_AGAIN = "the download or copy is incomplete or damaged: fetch the model again"


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor: `size` bytes from `start` (counted from the beginning of the file) of `shard`."""

    key: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Shard:
    """One safetensors file: `header` bytes (length field included), then the tensors, in file order."""

    name: str
    path: Path
    size: int
    header: int
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The weight files of one model directory.

    shards  in the order of their names
    index   the file that says which shard holds which key; None for a single file
    """

    directory: Path
    shards: tuple[Shard, ...]
    index: Path | None
    tensors: Mapping[str, TensorEntry]

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Read and check every header of the weight files that Transformers would load from `directory`.

        Raises `CheckpointError` for a directory without safetensors weights, a truncated or corrupted file, and an
        index that names a shard or key that is not there.
        """
        explicit = _explicit_name(directory)
        single, index = directory / (explicit or SINGLE), directory / (explicit or INDEX)
        if single.suffix == ".safetensors" and single.is_file():
            shard = read_header(single)
            return cls(directory, (shard,), None, {entry.key: entry for entry in shard.tensors})
        if index.suffix == ".json" and index.is_file():
            return cls._open_index(directory, index)
        _refuse(directory)

    @classmethod
    def _open_index(cls, directory: Path, index: Path) -> Checkpoint:
        located = _read_index(index)
        shards = []
        for name in sorted(set(located.values())):
            if not (directory / name).is_file():
                raise CheckpointError(f"{index.name} names {name}, which is not in {directory}", hint=_AGAIN)
            shards.append(read_header(directory / name, name=name))
        tensors = {entry.key: entry for shard in shards for entry in shard.tensors}
        held = {(entry.key, shard.name) for shard in shards for entry in shard.tensors}
        for key, name in located.items():
            if (key, name) not in held:
                raise CheckpointError(f"{index.name} says that {name} holds {key}, and it does not", hint=_AGAIN)
        if len(held) != len(tensors):
            repeated = next(key for key in tensors if sum(key == other for other, _ in held) > 1)
            raise CheckpointError(f"{repeated} is stored in two shards of {directory}", hint=_AGAIN)
        return cls(directory, tuple(shards), index, tensors)

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.size for shard in self.shards)

    @property
    def files(self) -> frozenset[str]:
        """The names of the weight files (the index is not one)."""
        return frozenset(shard.name for shard in self.shards)


def read_header(path: Path, *, name: str | None = None) -> Shard:
    """The contents of one safetensors file. Raises `CheckpointError` unless header and data are whole and agree."""
    name = name or path.name
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size:
            raise CheckpointError(f"{path} is truncated ({size} bytes, its header alone needs more)", hint=_AGAIN)
        if length > _LARGEST_HEADER:
            raise CheckpointError(f"{path} is not a safetensors file (a header of {length} bytes)", hint=_AGAIN)
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"the header of {path} is corrupted ({error})", hint=_AGAIN) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"the header of {path} is corrupted (not an object)", hint=_AGAIN)
    entries = [_entry(key, value, name, path, 8 + length) for key, value in header.items() if key != "__metadata__"]
    entries.sort(key=lambda entry: (entry.start, entry.size))
    end = 8 + length
    for entry in entries:
        if entry.start != end:
            raise CheckpointError(f"the header of {path} is corrupted ({entry.key} is out of place)", hint=_AGAIN)
        end += entry.size
    if end > size:
        raise CheckpointError(f"{path} is truncated ({size} of {end} bytes)", hint=_AGAIN)
    if end < size:
        raise CheckpointError(f"{path} has {size - end} bytes that its header does not know", hint=_AGAIN)
    return Shard(name, path, size, 8 + length, tuple(entries))


def _entry(key: str, value: Any, shard: str, path: Path, data: int) -> TensorEntry:
    try:
        dtype, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        sound = all(type(number) is int and number >= 0 for number in (*shape, start, end))
        sound = sound and end - start == -(-math.prod(shape) * _BITS[dtype] // 8)
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"the header of {path} is corrupted (entry {key!r})", hint=_AGAIN) from error
    if not sound:
        raise CheckpointError(f"the header of {path} is corrupted (sizes of {key!r} disagree)", hint=_AGAIN)
    return TensorEntry(key, shard, dtype, shape, data + start, end - start)


def _read_index(index: Path) -> dict[str, str]:
    try:
        located = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is not a valid index ({error!r})", hint=_AGAIN) from error
    if not isinstance(located, dict) or not located or not all(isinstance(name, str) for name in located.values()):
        raise CheckpointError(f"{index} is not a valid index (weight_map is not a table of file names)", hint=_AGAIN)
    for name in set(located.values()):
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not name or name != "/".join(parts) or ".." in parts or ":" in name or parts[0] == "/":
            raise CheckpointError(f"{index} names {name!r}, which is outside its directory", hint=_AGAIN)
    return located


def holds_weights(directory: Path) -> bool:
    """Whether there are weights in a directory, in whatever format: other files alone are a model's outline."""
    return any(path.suffix in _WEIGHT_FILES or path.name == INDEX for path in directory.iterdir())


def _explicit_name(directory: Path) -> str | None:
    """A weight file that config.json names itself (Transformers reads that one)."""
    try:
        name = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError):
        return None  # the loader of the configuration says what is wrong with it
    return name if isinstance(name, str) and PurePosixPath(name).name == name else None


def _refuse(directory: Path) -> NoReturn:
    if not directory.is_dir():
        raise CheckpointError(f"there is no directory {directory}", hint="give the directory of a Transformers model")
    names = [path.name for path in directory.iterdir()]
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        raise CheckpointError(
            f"{directory} has only pickled weights, which can run code when they are read",
            hint="use a safetensors revision of the model, or convert it where you trust it: load it with Transformers "
            "and call save_pretrained",
        )
    if any(name.endswith(".gguf") for name in names):
        raise CheckpointError(f"{directory} has only GGUF weights", hint="use the safetensors version of the model")
    raise CheckpointError(f"{directory} has no {SINGLE} or {INDEX}", hint=_AGAIN)


__all__ = [
    "Checkpoint",
    "Shard",
    "TensorEntry",
    "checkpoint_hash",
    "config_hash",
    "holds_weights",
    "locate",
    "model_identity",
    "read_header",
]
