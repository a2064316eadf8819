"""Reading writers off the autograd graph of one decoder layer: no table of module names.

From a layer's output the graph is walked back through everything that leaves a direction of the residual stream where
it is (adds, scalings, views, gathers, norms and their gains) until the first product with a parameter. That parameter
*writes*: its output axis is the residual axis. Ops on the way tell the rest: a gain between write and residual add, an
index that routes tokens to experts, a bias beside the product.

What the walk concludes is never trusted alone: the probe (`excise.model.probe`) proves it numerically.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from excise.model.findings import Blocked, GainStep, Path, Walk, Write
from excise.model.views import (
    NONLINEAR,
    axis_of,
    below,
    children_of,
    parameter_axes,
    shape_of,
    through_views,
    variable_of,
)

# Products, with the places of (left, right, bias) among their inputs. `right` None: an op whose weight is [out, in, …].
_PRODUCTS: dict[str, tuple[int, int | None, int | None]] = {
    "MmBackward": (0, 1, None),
    "BmmBackward": (0, 1, None),
    "MvBackward": (0, 1, None),
    "AddmmBackward": (1, 2, 0),
    "BaddbmmBackward": (1, 2, 0),
    "GroupedMmBackward": (0, 1, None),
}
_WEIGHT_FIRST: dict[str, tuple[int, int, int]] = {  # places of (input, weight, bias); the weight is [out, in, …]
    "LinearBackward": (0, 1, 2),
    "MkldnnLinearBackward": (0, 1, 2),
    "ConvolutionBackward": (0, 1, 2),
}
_NORMS = ("NativeLayerNormBackward", "FusedRmsNormBackward", "RmsNormBackward")
_ROUTING = ("IndexAdd", "IndexPut", "Scatter", "Gather", "Index")
_NEAR = 32  # a norm's scale is a few operations away from what it scales


def walk(outputs: Collection[Node], *, streams: Collection[Node], names: Mapping[int, str], hidden: int) -> Walk:
    """Every write that reaches `outputs`, the nodes of tensors (..., hidden) that were computed with gradients.

    streams  where the walk ends: what computed the layer's input and the other layers' outputs
    names    parameter name by `id` of the tensor
    hidden   width of the residual stream
    """
    return _Walker(frozenset(streams), names, hidden).run(outputs)


@dataclass(frozen=True)
class _Way:
    """What lies between a node and the stream.

    routed  an index that sends tokens to experts
    normed  a norm, whose scale depends on the write itself
    """

    gains: Path = ()
    routed: bool = False
    normed: bool = False

    def behind(self, step: GainStep, *, normed: bool = False) -> _Way:
        return _Way((*self.gains, step), self.routed, self.normed or normed)


_Todo = tuple[Node, _Way]


class _Walker:
    def __init__(self, streams: frozenset[Node], names: Mapping[int, str], hidden: int) -> None:
        self.streams, self.names, self.hidden = streams, names, hidden
        self.writes: list[Write] = []
        self.blocked: list[Blocked] = []
        self.carried: list[Path] = []
        self.constant = False
        self.parameter_only: dict[Node, bool] = {}
        self.steps: dict[tuple[Node, int], GainStep] = {}

    def run(self, outputs: Collection[Node]) -> Walk:
        todo: list[_Todo] = [(node, _Way()) for node in outputs]
        seen: set[_Todo] = set()
        while todo:
            node, way = todo.pop()
            if (node, way) not in seen:
                seen.add((node, way))
                todo.extend(self.step(node, way))
        carried, passed = tuple(dict.fromkeys(self.carried)), frozenset(node for node, _ in seen)
        return Walk(tuple(self.writes), tuple(self.blocked), carried, passed, self.constant)

    def step(self, node: Node, way: _Way) -> Iterator[_Todo]:
        name = node.name().removeprefix("torch::autograd::")
        if node in self.streams:
            self.carried.append(way.gains)
        elif hasattr(node, "variable"):
            self.leaf(node, way)
        elif name.startswith("ConvolutionBackward") and (taps := self.taps(node)):
            yield from self.filtered(node, taps, way)
        elif name.startswith((*_PRODUCTS, *_WEIGHT_FIRST, "EmbeddingBackward")):
            yield from self.product(node, way)
        elif name.startswith(_NORMS):
            yield from self.norm(node, way)
        elif name.startswith(("MulBackward", "DivBackward")):
            yield from self.scaling(node, way)
        elif name.startswith(("AddBackward", "SubBackward", "CopySlices")):  # the last: added in place to a view
            yield from self.addition(node, way)
        elif name.startswith("CatBackward") and (parts := self.parts(node)):
            yield from ((child, way.behind(step)) for child, step in parts)
        elif _is_custom(node) and self.owns_parameters(node):
            self.block(f"an operation of the model's own ({_short(name)}) writes to the stream", node, way)
        elif name.startswith("WhereBackward"):
            yield from ((child, way) for child in self.chosen(node))
        elif name.startswith(NONLINEAR):
            self.block(f"a nonlinearity ({_short(name)}) lies between a write and the residual add", node, way)
        else:
            way = replace(way, routed=True) if name.startswith(_ROUTING) else way
            for child in children_of(node):
                yield child, way

    def block(self, reason: str, node: Node, way: _Way) -> None:
        self.blocked.append(Blocked(reason, self.parameters_below(node), way.gains))

    def leaf(self, node: Node, way: _Way) -> None:
        variable = variable_of(node)
        name = self.names.get(id(variable))
        if name is not None:  # a learned vector (or bank of vectors) that is added as it is
            self.writes.append(Write(node, name, variable.ndim - 1, None, None, way.gains, way.routed, way.normed, ()))

    def product(self, node: Node, way: _Way) -> Iterator[_Todo]:
        name = node.name()
        operands = [child for child, _ in node.next_functions]
        if name.startswith("EmbeddingBackward"):
            self.emit(node, operands[0], lambda ndim: ndim - 1, None, way, ())
            return
        left, right, bias = next(
            (place for kind, place in (*_PRODUCTS.items(), *_WEIGHT_FIRST.items()) if name.startswith(kind))
        )
        bias_node = operands[bias] if bias is not None and bias < len(operands) else None
        if name.startswith(tuple(_WEIGHT_FIRST)):
            inputs = _present(operands[left])
            found = self.emit(node, operands[right or 1], lambda _: 0, bias_node, way, inputs)
        else:
            assert right is not None
            found = self.emit(
                node, operands[right], lambda ndim: ndim - 1, bias_node, way, _present(operands[left])
            ) or self.emit(node, operands[left], lambda ndim: ndim - 2, bias_node, way, _present(operands[right]))
        carrier = None if found else self.mixed(node)
        if carrier is not None:
            yield carrier, way
        elif not found:
            reason = f"a product of activations ({_short(name)}) reaches the residual stream without an output matrix"
            self.block(reason, node, way)

    def mixed(self, node: Node) -> Node | None:
        """What a product of two activations mixes along other axes than the residual one, which it leaves alone.

        So do hyper-connections: (streams, streams) @ (streams, hidden).
        """
        places = next((place for kind, place in _PRODUCTS.items() if node.name().startswith(kind)), None)
        shape = shape_of(node, 0)
        if places is None or len(shape) < 2:
            return None
        left, right, _ = places
        for place, axis in ((right, -1), (left, -2)):
            if shape[axis] == self.hidden and place is not None:
                child, output = node.next_functions[place]
                if child is not None and shape_of(child, output)[axis] == self.hidden:
                    return child
        return None

    def taps(self, node: Node) -> list[Tensor | None]:
        """The taps of a depthwise convolution along the tokens, as one factor per component of the stream each."""
        located = parameter_axes(node.next_functions[1][0])
        groups = int(getattr(node, "_saved_groups", 1))
        if located is None or groups == 1 or groups % self.hidden or located[0].numel() % groups:
            return []
        kernel = located[0].detach().reshape(groups // self.hidden, self.hidden, -1)
        return [_vector(tap, self.hidden) for stream in kernel for tap in stream.unbind(dim=-1)]

    def filtered(self, node: Node, taps: list[Tensor | None], way: _Way) -> Iterator[_Todo]:
        """Behind a depthwise convolution the write is a sum over taps, so it passes each tap's factors on its own."""
        inputs, weight, *bias = [child for child, _ in node.next_functions]
        for child in bias:
            if child is not None:
                yield child, way
        for index, values in enumerate(taps):
            if inputs is not None:
                step = self.steps.setdefault((node, index), GainStep(values, self.name_of(weight)))
                yield inputs, way.behind(step)

    def emit(
        self,
        node: Node,
        operand: Node | None,
        output_axis: Any,
        bias: Node | None,
        way: _Way,
        inputs: tuple[Node, ...],
    ) -> bool:
        located = parameter_axes(operand)
        if located is None:
            return False
        variable, axes, fixed = located
        name = self.names.get(id(variable))
        if name is None:
            return False
        axis = axes[output_axis(len(axes))]
        if axis is None:
            return False
        others = [label for label in axes if label is not None and label != axis]
        experts = [*fixed, *others[:-1]] if variable.ndim >= 3 else []
        if variable.ndim >= 3 and node.name().startswith("ConvolutionBackward"):
            experts = []
        bias_leaf = parameter_axes(bias)
        bias_name = self.names.get(id(bias_leaf[0])) if bias_leaf else None
        expert_axis = experts[0] if experts else None
        self.writes.append(Write(node, name, axis, expert_axis, bias_name, way.gains, way.routed, way.normed, inputs))
        return True

    def norm(self, node: Node, way: _Way) -> Iterator[_Todo]:
        operands = [child for child, _ in node.next_functions]
        weight = getattr(node, "_saved_weight", None)
        centred = node.name().startswith("NativeLayerNorm")
        gain_name = self.name_of(operands[1]) if len(operands) > 1 else None
        values = None if weight is None else _vector(weight, self.hidden)
        bias = operands[2] if len(operands) > 2 else None
        if bias is not None:
            yield bias, way
        if operands[0] is not None:
            step = self.steps.setdefault((node, 0), GainStep(values, gain_name, centred))
            yield operands[0], way.behind(step, normed=True)

    def scaling(self, node: Node, way: _Way) -> Iterator[_Todo]:
        """A product of two tensors: go on along the one that carries the stream, keep the other as gain or scale."""
        operands = [child for child, _ in node.next_functions]
        saved = (_saved(node, "self"), _saved(node, "other"))
        for place, factor in ((0, 1), (1, 0)):
            carrier = operands[place]
            if carrier is None or self.only_parameters(carrier):
                continue
            kind = self.factor_kind(node.next_functions[factor], saved[factor])
            if kind == "scale":
                yield carrier, self.scaled(carrier, operands[factor], way)
                return
            if kind == "gain":
                kept = saved[factor]
                values = None if kept is None else _vector(kept, self.hidden)
                if values is not None and node.name().startswith("DivBackward"):
                    values = values.reciprocal()
                step = self.steps.setdefault((node, 0), GainStep(values, self.name_of(operands[factor])))
                yield carrier, way.behind(step)
                return
        if all(operand is None or self.only_parameters(operand) for operand in operands):
            for operand in operands:
                if operand is not None:
                    yield operand, way
            return
        reason = "a write is multiplied elementwise by a gate that depends on the input"
        self.block(reason, node, way)

    def scaled(self, carrier: Node, factor: Node | None, way: _Way) -> _Way:
        """The way past a scale: a norm, where the scale is computed from what it scales."""
        if way.normed or factor is None:
            return way
        return replace(way, normed=carrier in islice(below([factor]), _NEAR))

    def factor_kind(self, operand: tuple[Node | None, int], value: Tensor | None) -> str:
        """`scale`: the same number for the whole residual axis; `gain`: fixed per component; `gate`: neither."""
        node, output = operand
        shape = value.shape if node is None and value is not None else None if node is None else shape_of(node, output)
        if not shape or shape[-1] == 1:  # autograd keeps no copy of python scalars
            return "scale"
        fixed = node is None or self.only_parameters(node)
        return "gain" if fixed and math.prod(shape) == self.hidden else "gate"

    def owns_parameters(self, node: Node) -> bool:
        """Whether an operation takes parameters as they are: what it does with them cannot be seen."""
        located = [parameter_axes(child) for child in children_of(node)]
        return any(found is not None and id(found[0]) in self.names for found in located)

    def parts(self, node: Node) -> list[tuple[Node, GainStep]]:
        """The vectors that are put side by side into one of the stream's width, and where each of them lies."""
        shape, at = shape_of(node, 0), 0
        if shape[-1] != self.hidden or axis_of(node, "dim", len(shape)) != len(shape) - 1:
            return []
        found = []
        for index, (child, output) in enumerate(node.next_functions):
            if child is None:
                return []
            width = shape_of(child, output)[-1]
            step = self.steps.setdefault((node, index), GainStep(part=slice(at, at + width)))
            found.append((child, step))
            at += width
        return found if at == self.hidden else []

    def chosen(self, node: Node) -> list[Node]:
        """What a choice by a mask takes; the other side, where the mask never asks for it, writes nothing."""
        condition = getattr(node, "_saved_condition", None)
        one, other = (child for child, _ in node.next_functions)
        if condition is not None and not condition.is_meta:
            one, other = (one if condition.any() else None), (None if condition.all() else other)
        return [child for child in (one, other) if child is not None]

    def addition(self, node: Node, way: _Way) -> Iterator[_Todo]:
        """Both terms are followed; a parameter beside a single product is that product's bias."""
        children = children_of(node)
        self.constant |= len(children) < len(node.next_functions) and node.name().startswith("Add")
        biases = [child for child in children if self.only_parameters(child) and parameter_axes(child) is not None]
        products = [child for child in children if child not in biases]
        if len(biases) == 1 and len(products) == 1:
            product = through_views(products[0])
            located = parameter_axes(biases[0])
            before, blocked = len(self.writes), len(self.blocked)
            if product is not None and located is not None and product.name().startswith(tuple(_PRODUCTS)):
                carriers = list(self.product(product, way))
                if not carriers and len(self.writes) == before + 1 and self.writes[-1].bias is None:
                    write = self.writes.pop()
                    bias = self.names.get(id(located[0]))
                    self.writes.append(Write(**{**vars(write), "bias": bias}))
                    return
                del self.writes[before:], self.blocked[blocked:]
        for child in children:
            yield child, way

    def only_parameters(self, node: Node) -> bool:
        """Whether nothing below `node` depends on the input: parameters and constants alone."""
        if node not in self.parameter_only:
            self.parameter_only[node] = all(self.depends_on_no_input(current) for current in below([node]))
        return self.parameter_only[node]

    def depends_on_no_input(self, node: Node) -> bool:
        if hasattr(node, "variable"):
            return id(variable_of(node)) in self.names
        return not node.name().startswith(("EmbeddingBackward", *_PRODUCTS))

    def name_of(self, node: Node | None) -> str | None:
        if node is None:
            return None
        return next(iter(self.parameters_below(node)), None)

    def parameters_below(self, node: Node, limit: int = 3) -> tuple[str, ...]:
        """The parameters that `node` was computed from, nearest first."""
        leaves = (self.names.get(id(variable_of(each))) for each in below([node]) if hasattr(each, "variable"))
        return tuple(islice((name for name in leaves if name is not None), limit))


def _present(node: Node | None) -> tuple[Node, ...]:
    return () if node is None else (node,)


def _is_custom(node: object) -> bool:
    """Whether an operation is a `torch.autograd.Function` of somebody's own."""
    return isinstance(node, BackwardCFunction)


def _saved(node: Node, name: str) -> Tensor | None:
    value = getattr(node, f"_saved_{name}", None)
    return value if isinstance(value, Tensor) else None


def _vector(values: Tensor, hidden: int) -> Tensor | None:
    return None if values.numel() != hidden or values.is_meta else values.detach().float().reshape(-1).cpu()


def _short(name: str) -> str:
    return name.partition("Backward")[0]


__all__ = ["walk"]
