"""Reading autograd nodes: what they come from, and which parameter lies behind one that only views a tensor."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator

from torch import Tensor
from torch.autograd.graph import Node

NONLINEAR = tuple(
    f"{kind}Backward"
    for kind in ("Sigmoid", "Silu", "Gelu", "Relu", "Tanh", "Softmax", "Exp", "Pow", "Clamp", "Cumsum", "Softplus")
)
"""Operations that leave no direction where it is."""


def parameter_axes(node: Node | None) -> tuple[Tensor, list[int | None], list[int]] | None:
    """The parameter that `node` views: (parameter, its axis behind each axis of the view, axes fixed by a select).

    None where the node is computed rather than viewed.
    """
    chain: list[Node] = []
    while node is not None and not hasattr(node, "variable"):
        if not node.name().startswith(_VIEWS):
            return None
        chain.append(node)
        children = children_of(node)
        if len(children) != 1:
            return None
        node = children[0]
    if node is None:
        return None
    variable = variable_of(node)
    axes: list[int | None] = list(range(variable.ndim))
    fixed: list[int] = []
    for view in reversed(chain):
        axes = _through(view, axes, fixed)
    return variable, axes, fixed


_VIEWS = (
    "TBackward", "TransposeBackward", "PermuteBackward", "ExpandBackward", "SelectBackward", "IndexBackward",
    "IndexSelectBackward", "SliceBackward", "UnsqueezeBackward", "SqueezeBackward", "ToCopyBackward", "AliasBackward",
    "CloneBackward", "ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward", "SplitBackward", "UnbindBackward",
)  # fmt: skip


def _through(view: Node, axes: list[int | None], fixed: list[int]) -> list[int | None]:
    name = view.name()
    if name.startswith("TBackward"):
        return axes[::-1]
    if name.startswith("TransposeBackward"):
        first, second = axis_of(view, "dim0", len(axes)), axis_of(view, "dim1", len(axes))
        swapped = list(axes)
        swapped[first], swapped[second] = axes[second], axes[first]
        return swapped
    if name.startswith("PermuteBackward"):
        return [axes[int(dim) % len(axes)] for dim in getattr(view, "_saved_dims")]  # noqa: B009 - a C++ attribute
    if name.startswith(("SelectBackward", "UnbindBackward")):
        dim = axis_of(view, "dim", len(axes))
        gone = axes[dim]
        if gone is not None:
            fixed.append(gone)
        return axes[:dim] + axes[dim + 1 :]
    if name.startswith("UnsqueezeBackward"):
        dim = axis_of(view, "dim", len(axes) + 1)
        return [*axes[:dim], None, *axes[dim:]]
    return axes


def axis_of(node: Node, attribute: str, ndim: int) -> int:
    """A dimension that an operation on `ndim` of them was given, from 0 on (autograd keeps negative ones unsigned)."""
    value = int(getattr(node, f"_saved_{attribute}"))
    return (value - 2**64 if value >= 2**63 else value) % ndim


def through_views(node: Node) -> Node | None:
    """The first node below that is no view; None where a view has several inputs."""
    current: Node | None = node
    while current is not None and current.name().startswith(_VIEWS):
        children = children_of(current)
        current = children[0] if len(children) == 1 else None
    return current


def children_of(node: Node) -> list[Node]:
    """The nodes whose results a node was computed from."""
    return [child for child, _ in node.next_functions if child is not None]


def below(starts: Iterable[Node], *, stops: Collection[Node] = ()) -> Iterator[Node]:
    """The nodes that `starts` were computed from, themselves included, nearest first and each once; nothing from
    `stops` on."""
    queue = deque(dict.fromkeys(starts))
    visited = set(queue)
    while queue:
        node = queue.popleft()
        if node in stops:
            continue
        yield node
        new = [child for child in dict.fromkeys(children_of(node)) if child not in visited]
        visited.update(new)
        queue.extend(new)


def shape_of(node: Node, output: int) -> tuple[int, ...]:
    """The shape of what a node computed, as its `output`-th result."""
    return tuple(node._input_metadata[output].shape)


def variable_of(node: Node) -> Tensor:
    """The leaf tensor of an accumulation node."""
    variable: Tensor = node.variable  # type: ignore[attr-defined]
    return variable
