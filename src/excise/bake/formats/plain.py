"""Weights stored as they are: bf16, fp16 and fp32 in safetensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor

from excise.bake.formats.base import Piece
from excise.bake.plan import Slices, TensorEdit, blocks
from excise.edit import operators
from excise.errors import CheckpointError
from excise.model.checkpoint import Checkpoint, TensorEntry

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_BLOCK = 1 << 24  # elements read and written at once: 32 MB in bf16
_PART = 1 << 19  # elements computed at once: 2 MB in fp32, which stays in the cache


class Plain:
    """bf16, fp16 and fp32 tensors: computed in fp32, rounded once to their own dtype."""

    name = "safetensors bf16/fp16/fp32"

    def holds(self, checkpoint: Checkpoint, entry: TensorEntry) -> bool:
        """Whether the tensor is a float that has no scale tensor beside it."""
        scales = (f"{entry.key}_scale", f"{entry.key}_scale_inv", f"{entry.key}_scales")
        return entry.dtype in DTYPES and not any(key in checkpoint.tensors for key in scales)

    def pieces(self, source: BinaryIO, entry: TensorEntry, edit: TensorEdit) -> Iterator[Piece]:
        """The edited tensor, block by block; each block holds whole columns."""
        for block in blocks(entry.shape, edit.axis, _BLOCK):
            weight = _read(source, entry, block)
            _edit(weight, edit.within(block))
            finite = weight.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(weight))).all())
            data, at = _bytes(weight), 0
            for start, size in _runs(entry, block, weight.element_size()):
                yield Piece(start, data[at : at + size], finite)
                at += size


def _edit(weight: Tensor, edit: TensorEdit) -> None:
    """Edit a tensor in place. Columns do not depend on one another, so it is done in parts."""
    for part in blocks(tuple(weight.shape), edit.axis, _PART):
        changes = edit.within(part).changes
        if edit.bias:
            weight[part] = operators.apply_bias(weight[part], changes)
        else:
            weight[part] = operators.apply(weight[part], changes, axis=edit.axis)


def _runs(entry: TensorEntry, block: Slices, width: int) -> Iterator[tuple[int, int]]:
    """The contiguous byte ranges of the file that hold a block, in the order of its elements."""
    partial = [axis for axis, part in enumerate(block) if part.stop - part.start < entry.shape[axis]]
    inner = partial[-1] if partial else 0  # everything behind this axis is whole
    strides = [math.prod(entry.shape[axis + 1 :]) * width for axis in range(len(block))]
    if not block:
        yield entry.start, entry.size
        return
    size = (block[inner].stop - block[inner].start) * strides[inner]
    outer = block[:inner]
    for flat in range(math.prod(part.stop - part.start for part in outer)):
        offset = block[inner].start * strides[inner]
        for axis in reversed(range(inner)):
            flat, index = divmod(flat, outer[axis].stop - outer[axis].start)
            offset += (outer[axis].start + index) * strides[axis]
        yield entry.start + offset, size


def _read(source: BinaryIO, entry: TensorEntry, block: Slices) -> Tensor:
    dtype = DTYPES[entry.dtype]
    shape = [part.stop - part.start for part in block]
    buffer = bytearray(math.prod(shape) * dtype.itemsize)
    view, at = memoryview(buffer), 0
    for start, size in _runs(entry, block, dtype.itemsize):
        source.seek(start)
        if source.readinto(view[at : at + size]) != size:  # type: ignore[attr-defined]
            raise CheckpointError(f"{entry.shard} became shorter while it was read", hint="do not change it meanwhile")
        at += size
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape) if buffer else torch.empty(shape, dtype=dtype)


def _bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(array)
