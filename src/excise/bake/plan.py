"""What a bake will do, worked out before any byte is written: which stored tensors change, and how."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from excise.bake.keys import KeyMap, Placement
from excise.edit import Change, Edit, LowRank, Mask, Projection, SiteEdit, Writer
from excise.errors import CheckpointError, EditMismatchError

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class TensorEdit:
    """The change of one stored tensor.

    key        of the tensor in the checkpoint; `parameter` is the loaded parameter it belongs to
    axis       its residual axis
    changes    cut to the part of the parameter that this tensor holds
    bias       whether it is a bias: projections act on it, other changes do not
    """

    key: str
    parameter: str
    axis: int
    changes: tuple[Change, ...]
    bias: bool = False

    def within(self, block: Slices) -> TensorEdit:
        """The change of one block of the tensor; the block is whole along the residual axis."""
        others = tuple(part for axis, part in enumerate(block) if axis != self.axis)
        return replace(self, changes=tuple(_cut(change, others) for change in self.changes))


def plan(edit: Edit, keys: KeyMap) -> dict[str, TensorEdit]:
    """The change of every stored tensor that the edit touches, by checkpoint key.

    Raises `EditMismatchError` where the model has no such parameter or width, `CheckpointError` where the checkpoint's
    tensors cannot be edited one by one.
    """
    planned: dict[str, TensorEdit] = {}
    for site in (site for site in edit.sites if site.changes):
        _check(site, keys)
        found = [_weight(site, part, keys) for part in keys.placements(site.writer.parameter)]
        if site.writer.bias is not None and any(isinstance(change, Projection) for change in site.changes):
            found += [_bias(site, site.writer.bias, part, keys) for part in keys.placements(site.writer.bias)]
        for tensor in found:
            if tensor.key in planned:
                raise CheckpointError(
                    f"{tensor.key} belongs to two writers, {planned[tensor.key].parameter} and {tensor.parameter}",
                    hint="leave one of them out of the edit",
                )
            planned[tensor.key] = tensor
    return planned


def blocks(shape: tuple[int, ...], axis: int, limit: int) -> Iterator[Slices]:
    """Blocks of at most `limit` elements (but one column at least) that tile a tensor, each whole along `axis`."""
    sizes = list(shape)
    for other in (dim for dim in range(len(shape)) if dim != axis):
        volume = math.prod(sizes)
        if volume <= limit:
            break
        sizes[other] = max(1, limit // (volume // sizes[other]))
    yield from _tile(shape, sizes)


def _tile(shape: Sequence[int], sizes: Sequence[int]) -> Iterator[Slices]:
    if not shape:
        yield ()
        return
    for start in range(0, shape[0], max(sizes[0], 1)):
        for rest in _tile(shape[1:], sizes[1:]):
            yield (slice(start, min(start + sizes[0], shape[0])), *rest)


def _check(site: SiteEdit, keys: KeyMap) -> None:
    writer = site.writer
    for name in (writer.parameter, *([writer.bias] if writer.bias else [])):
        if name not in keys.shapes:
            raise EditMismatchError(
                f"the edit changes {name}, which this model does not have",
                hint="use the model that the edit was made for",
            )
    shape = keys.shapes[writer.parameter]
    for change in site.changes:
        misfit = change.misfit(shape, axis=writer.axis)
        if misfit:
            raise EditMismatchError(
                f"{misfit}; {writer.parameter} is {shape}",
                hint="use the model that the edit was made for",
            )


def _weight(site: SiteEdit, part: Placement, keys: KeyMap) -> TensorEdit:
    writer = site.writer
    if writer.axis not in part.axes or part.extent(writer.axis) != keys.shapes[writer.parameter][writer.axis]:
        raise CheckpointError(
            f"{part.key} holds only a part of the residual axis of {writer.parameter}",
            hint="leave this parameter out of the edit, or apply the edit live",
        )
    changes = tuple(_cut(change, _others(writer, part)) for change in site.changes)
    return TensorEdit(part.key, writer.parameter, part.axes.index(writer.axis), changes)


def _bias(site: SiteEdit, bias: str, part: Placement, keys: KeyMap) -> TensorEdit:
    last = len(keys.shapes[bias]) - 1
    if not part.axes or part.axes[-1] != last or part.shape[-1] != keys.shapes[bias][-1]:
        raise CheckpointError(
            f"{part.key} holds only a part of {bias}", hint="leave this parameter out of the edit, or apply it live"
        )
    changes = tuple(change for change in site.changes if isinstance(change, Projection))
    return TensorEdit(part.key, bias, len(part.shape) - 1, changes, bias=True)


def _others(writer: Writer, part: Placement) -> tuple[slice | int, ...]:
    """Which experts and which inputs of the parameter a stored tensor holds; an int where it has no such axis."""
    return tuple(
        slice(part.start[axis], part.start[axis] + part.extent(axis)) if axis in part.axes else part.start[axis]
        for axis in range(len(part.start))
        if axis != writer.axis
    )


def _cut(change: Change, others: Sequence[slice | int]) -> Change:
    """A change of some columns: projections treat every column alike, others have a factor per column."""
    if isinstance(change, Projection):
        return change
    if isinstance(change, Mask):
        wanted = zip(others, change.scale.shape, strict=True)
        return Mask(change.scale[tuple(_of_all(part) if size == 1 else part for part, size in wanted)])
    left, right = change.left, change.right
    if len(others) != right.ndim - 1:
        raise CheckpointError(
            f"a low-rank change of shape {tuple(right.shape)} does not fit the stored tensor",
            hint="use the model that the edit was made for",
        )
    if right.ndim == 3:
        right = right[others[0]]
        left = left[others[0]] if left.ndim == 3 else left
    return LowRank(left, right[..., others[-1]])


def _of_all(part: slice | int) -> slice | int:
    """The one factor that stands for all of an axis, for whichever part of it."""
    return slice(None) if isinstance(part, slice) else 0
