"""From the name of a loaded parameter to the tensors of a checkpoint that make it up.

Transformers 5 renames, stacks, joins and transposes weights while it loads them. The map is derived from its own
conversion tables, applied to names and shapes alone (the model is built without memory), and refuses what it cannot
follow: a parameter that is not tiled exactly by checkpoint tensors is an error, not a guess.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from excise.errors import CheckpointError
from excise.model.load import skeleton

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Placement:
    """Where one checkpoint tensor lies in a parameter.

    key    of the checkpoint tensor; `shape` is its shape
    axes   the parameter axis that each of its axes runs along
    start  where it begins in the parameter, one number per parameter axis
    """

    key: str
    shape: Shape
    axes: tuple[int, ...]
    start: tuple[int, ...]

    def extent(self, axis: int) -> int:
        """Its length along one parameter axis (1 where it is one slice of a stack)."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1


@dataclass(frozen=True)
class _Block:
    """A tensor as the conversion sees it: a shape, and the checkpoint tensors that lie in it."""

    shape: Shape
    parts: tuple[Placement, ...]


@dataclass
class _Sources:
    """The checkpoint keys that one parameter is made from, by the pattern that matched them."""

    converter: WeightConverter | None
    keys: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


class KeyMap:
    """The checkpoint tensors behind every parameter of a model.

    model   the architecture, without weights (see `excise.model.load.skeleton`)
    stored  the shape of every tensor in the checkpoint
    """

    def __init__(self, model: PreTrainedModel, stored: Mapping[str, Shape]) -> None:
        tensors = model.state_dict(keep_vars=True)
        self.shapes: dict[str, Shape] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self._names: dict[int, list[str]] = defaultdict(list)
        for name, tensor in tensors.items():
            self._names[id(tensor)].append(name)
        self._identity = {name: id(tensor) for name, tensor in tensors.items()}
        self._stored = stored
        self._sources = _sources(model, stored, tensors)

    def aliases(self, parameter: str) -> tuple[str, ...]:
        """All names of one tensor, itself included: a tied LM head is another name of the embedding."""
        return tuple(self._names[self._identity[parameter]])

    def placements(self, parameter: str) -> tuple[Placement, ...]:
        """The checkpoint tensors that make up a parameter, under any of its names; a separate copy counts as well.

        Raises `CheckpointError` where the checkpoint does not hold it whole, or Transformers converts it in a way that
        is not followed here.
        """
        if parameter not in self.shapes:
            raise CheckpointError(
                f"the model has no parameter {parameter}", hint="use the model that the edit was made for"
            )
        found = [part for name in self.aliases(parameter) for part in self._tiles(name)]
        if not found:
            raise CheckpointError(
                f"no tensor of the checkpoint becomes {parameter}",
                hint="the checkpoint is of another model, or damaged",
            )
        return tuple(found)

    def missing(self) -> tuple[str, ...]:
        """Parameters that no tensor of the checkpoint becomes."""
        return tuple(name for name in self.shapes if not any(alias in self._sources for alias in self.aliases(name)))

    def _tiles(self, parameter: str) -> tuple[Placement, ...]:
        sources = self._sources.get(parameter)
        if sources is None:
            return ()
        block = _convert(sources, parameter, self.shapes[parameter], self._stored)
        volume = sum(math.prod(part.shape) for part in block.parts)
        if block.shape != self.shapes[parameter] or volume != math.prod(block.shape):
            raise CheckpointError(
                f"the checkpoint holds {parameter} as {block.shape}; the model needs {self.shapes[parameter]}",
                hint="the checkpoint is of another model, or damaged",
            )
        return block.parts


def _sources(
    model: PreTrainedModel, stored: Mapping[str, Shape], tensors: Mapping[str, torch.Tensor]
) -> dict[str, _Sources]:
    """What `from_pretrained` collects for every parameter, in its order."""
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, names = model.base_model_prefix, dict(tensors)
    sources: dict[str, _Sources] = {}
    for key in sorted(stored, key=dot_natural_key):
        renamed, pattern = rename_source_key(key, renamings, converters, prefix, names)
        if renamed not in names and key in names:
            renamed, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=names)
        if renamed in names:
            found = sources.setdefault(renamed, _Sources(None if pattern is None else by_pattern[pattern]))
            found.keys[pattern or ""].append(key)
    return sources


def _convert(sources: _Sources, parameter: str, shape: Shape, stored: Mapping[str, Shape]) -> _Block:
    blocks = {pattern: [_whole(key, stored[key]) for key in keys] for pattern, keys in sources.keys.items()}
    if sources.converter is None:
        return blocks[""][0]
    targets = sources.converter.target_patterns
    if len(targets) > 1:
        return _split_off(sources, parameter, blocks, targets)
    merged: dict[str, _Block] = {}
    for operation in sources.converter.operations:
        if isinstance(operation, MergeModulelist):
            merged = {pattern: _stack(parts, operation.dim) for pattern, parts in blocks.items()}
        elif isinstance(operation, Concatenate):
            order = [pattern for pattern in sources.converter.source_patterns if pattern in blocks]
            merged = {"": _join([part for pattern in order for part in blocks[pattern]], operation.dim)}
        elif isinstance(operation, Transpose) and len(blocks) == 1:
            (block,) = (parts[0] for parts in blocks.values())
            keep = operation.check_dims and block.shape == shape
            merged = {"": block if keep else _swap(block, operation.dim0, operation.dim1)}
        else:
            raise _not_followed(parameter, f"goes through {type(operation).__name__}", sources)
        blocks = {pattern: [block] for pattern, block in merged.items()}
    if len(blocks) != 1:
        raise _not_followed(parameter, "comes from several tensors", sources)
    return next(iter(blocks.values()))[0]


def _split_off(sources: _Sources, parameter: str, blocks: Mapping[str, list[_Block]], targets: Sequence[str]) -> _Block:
    """A parameter that shares its checkpoint tensors with others: one expert list that feeds several banks."""
    assert sources.converter is not None
    operation = sources.converter.operations[0]
    place = next((index for index, target in enumerate(targets) if target in parameter), None)
    if len(sources.converter.operations) != 1 or place is None or not hasattr(operation, "split_list_into_chunks"):
        raise _not_followed(parameter, "is split off a larger tensor", sources)
    split, stack, join = (getattr(operation, name) for name in ("split_list_into_chunks", "stack_dim", "concat_dim"))
    parts = [
        _stack(split(blocks[pattern], chunks=len(targets))[place], stack)
        for pattern in sources.converter.source_patterns
    ]
    return _join(parts, join)


def _not_followed(parameter: str, why: str, sources: _Sources) -> CheckpointError:
    keys = [key for group in sources.keys.values() for key in group]
    shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return CheckpointError(
        f"{parameter} {why} when Transformers loads it (from {shown}); baking cannot follow that yet",
        hint="leave this parameter out of the edit (roles=, layers=), or apply the edit live",
    )


def _whole(key: str, shape: Shape) -> _Block:
    return _Block(shape, (Placement(key, shape, tuple(range(len(shape))), (0,) * len(shape)),))


def _stack(blocks: Sequence[_Block], dim: int) -> _Block:
    parts = []
    for index, block in enumerate(blocks):
        for part in block.parts:
            axes = tuple(axis + (axis >= dim) for axis in part.axes)
            parts.append(replace(part, axes=axes, start=(*part.start[:dim], index, *part.start[dim:])))
    shape = _common([block.shape for block in blocks])
    return _Block((*shape[:dim], len(blocks), *shape[dim:]), tuple(parts))


def _join(blocks: Sequence[_Block], dim: int) -> _Block:
    parts, at = [], 0
    for block in blocks:
        for part in block.parts:
            parts.append(replace(part, start=(*part.start[:dim], part.start[dim] + at, *part.start[dim + 1 :])))
        at += block.shape[dim]
    shape = _common([(*block.shape[:dim], at, *block.shape[dim + 1 :]) for block in blocks])
    return _Block(shape, tuple(parts))


def _swap(block: _Block, one: int, other: int) -> _Block:
    swapped = list(range(len(block.shape)))
    swapped[one], swapped[other] = swapped[other], swapped[one]
    parts = tuple(
        replace(
            part,
            axes=tuple(swapped.index(axis) for axis in part.axes),
            start=tuple(part.start[axis] for axis in swapped),
        )
        for part in block.parts
    )
    return _Block(tuple(block.shape[axis] for axis in swapped), parts)


def _common(shapes: Sequence[Shape]) -> Shape:
    if len(set(shapes)) != 1:
        raise CheckpointError(
            f"tensors that belong together have different shapes: {sorted(set(shapes))}",
            hint="the checkpoint is of another model, or damaged",
        )
    return shapes[0]


__all__ = ["KeyMap", "Placement", "Shape", "skeleton"]
