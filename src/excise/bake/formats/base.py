"""What a weight format must be able to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol, runtime_checkable

from excise.bake.plan import TensorEdit
from excise.model.checkpoint import Checkpoint, TensorEntry


@dataclass(frozen=True)
class Piece:
    """Bytes that replace those at `start` of the same shard; `finite`: no NaN or infinity among their values."""

    start: int
    data: memoryview
    finite: bool


@runtime_checkable
class Format(Protocol):
    """A way to store weights. Writing and verifying both consume `pieces`, so they cannot disagree."""

    name: str

    def holds(self, checkpoint: Checkpoint, entry: TensorEntry) -> bool:
        """Whether this stored tensor, as it lies in this checkpoint, is in this format."""

    def pieces(self, source: BinaryIO, entry: TensorEntry, edit: TensorEdit) -> Iterator[Piece]:
        """The edited tensor, encoded as it was, in bounded memory; pieces cover it exactly once, in any order.

        source  the shard of the base checkpoint, unbuffered
        """
