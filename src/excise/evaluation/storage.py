"""Keeping many large tensors exactly: in memory up to a limit, in a temporary file beyond it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from excise.errors import DiskFullError


class TensorStore:
    """Append tensors and read them back, bit for bit.

    They stay on their own device while at least three times their size is free there, then go to host memory, and past
    `limit` bytes into memory-mapped temporary files, which vanish with the store.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._items: list[Tensor] = []
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Float[Tensor, "*shape"]:
        return self._items[index]

    def append(self, value: Float[Tensor, "*shape"]) -> int:
        """Keep a copy of `value`; returns its index. Raises `DiskFullError` where no file can hold it."""
        size = value.numel() * value.element_size()
        if self.used + size > self.limit:
            self._items.append(self._spill(value, size))
        elif _has_room(value.device, size):
            self._items.append(value.detach().clone())
            self.used += size
        else:
            self._items.append(value.detach().cpu().clone())
            self.used += size
        return len(self._items) - 1

    def _spill(self, value: Tensor, size: int) -> Tensor:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="excise-")
        path = Path(self._directory.name) / f"{len(self._items)}.bin"
        try:
            with path.open("wb") as file:
                _reserve(file.fileno(), size)
        except OSError as error:
            raise DiskFullError(
                f"no room for {size / 2**20:.0f} MiB in {path.parent}: {error.strerror}",
                hint="set TMPDIR to a larger disk, or measure fewer prompts or tokens",
            ) from error
        kept = torch.from_file(str(path), shared=True, size=value.numel(), dtype=value.dtype)
        return kept.view(value.shape).copy_(value.detach())


def _has_room(device: torch.device, size: int) -> bool:
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    return free - 3 * size > 0.25 * total


def _reserve(descriptor: int, size: int) -> None:
    """Claim the disk blocks now: a full disk found later, through the mapping, would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
