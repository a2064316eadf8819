"""Reading writers off the autograd graph of one decoder layer: no table of module names.

From a layer's output the graph is walked back through everything that leaves a direction of the residual stream where
it is (adds, scalings, views, gathers, norms and their gains) until the first product with a parameter. That parameter
*writes*: its output axis is the residual axis. Ops on the way tell the rest: a gain between write and residual add, an
index that routes tokens to experts, a bias beside the product.

What the walk concludes is never trusted alone: the probe (`excise.model.probe`) proves it numerically.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import Node

from excise.model.views import children_of, parameter_axes, through_views, variable_of

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
_NONLINEAR = tuple(
    f"{kind}Backward"
    for kind in ("Sigmoid", "Silu", "Gelu", "Relu", "Tanh", "Softmax", "Exp", "Pow", "Clamp", "Cumsum", "Softplus")
)


@dataclass(frozen=True)
class GainStep:
    """An elementwise factor between a write and the residual add; `centred`: a LayerNorm also removes the mean."""

    values: Float[Tensor, " hidden"] | None
    parameter: str | None
    centred: bool = False


@dataclass(frozen=True)
class Write:
    """One product (or lone vector) that is added to the residual stream, as the walk met it."""

    node: Node
    parameter: str
    axis: int
    expert_axis: int | None
    bias: str | None
    gains: tuple[GainStep, ...]
    routed: bool
    inputs: tuple[Node, ...]


@dataclass(frozen=True)
class Blocked:
    """A path to the residual stream that is not a plain write, with what was seen there."""

    reason: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Walk:
    """What one walk found: writes, blocked paths, and how the stream itself is carried through (its gains, if any)."""

    writes: tuple[Write, ...]
    blocked: tuple[Blocked, ...]
    carried: tuple[tuple[GainStep, ...], ...]


def walk(output: Node | None, *, stream: Tensor | None, names: Mapping[int, str], hidden: int) -> Walk:
    """Every write that reaches `output`, the node of a tensor (..., hidden) that was computed with gradients.

    stream  the layer's input, a leaf that requires grad; None where the walk starts at the embeddings
    names   parameter name by `id` of the tensor
    hidden  width of the residual stream
    """
    return _Walker(stream, names, hidden).run(output)


class _Walker:
    def __init__(self, stream: Tensor | None, names: Mapping[int, str], hidden: int) -> None:
        self.stream, self.names, self.hidden = stream, names, hidden
        self.writes: list[Write] = []
        self.blocked: list[Blocked] = []
        self.carried: list[tuple[GainStep, ...]] = []
        self.parameter_only: dict[Node, bool] = {}

    def run(self, output: Node | None) -> Walk:
        todo: list[tuple[Node, tuple[GainStep, ...], bool]] = [(node, (), False) for node in _present(output)]
        seen: set[tuple[Node, tuple[int, ...]]] = set()
        while todo:
            node, gains, routed = todo.pop()
            key = (node, tuple(id(step) for step in gains))
            if key not in seen:
                seen.add(key)
                todo.extend(self.step(node, gains, routed))
        return Walk(tuple(self.writes), tuple(self.blocked), tuple(self.carried))

    def step(
        self, node: Node, gains: tuple[GainStep, ...], routed: bool
    ) -> Iterator[tuple[Node, tuple[GainStep, ...], bool]]:
        name = node.name()
        if hasattr(node, "variable"):
            self.leaf(node, gains, routed)
        elif name.startswith((*_PRODUCTS, *_WEIGHT_FIRST, "EmbeddingBackward")):
            self.product(node, gains, routed)
        elif name.startswith(_NORMS):
            yield from self.norm(node, gains, routed)
        elif name.startswith(("MulBackward", "DivBackward")):
            yield from self.scaling(node, gains, routed)
        elif name.startswith(("AddBackward", "SubBackward")):
            yield from self.addition(node, gains, routed)
        elif name.startswith(_NONLINEAR):
            self.blocked.append(
                Blocked(f"a nonlinearity ({_short(name)}) lies between a write and the residual add", ())
            )
        else:
            routed = routed or name.startswith(_ROUTING)
            for child in children_of(node):
                yield child, gains, routed

    def leaf(self, node: Node, gains: tuple[GainStep, ...], routed: bool) -> None:
        variable = variable_of(node)
        if self.stream is not None and variable is self.stream:
            self.carried.append(gains)
            return
        name = self.names.get(id(variable))
        if name is not None:  # a learned vector (or bank of vectors) that is added as it is
            self.writes.append(Write(node, name, variable.ndim - 1, None, None, gains, routed, ()))

    def product(self, node: Node, gains: tuple[GainStep, ...], routed: bool) -> None:
        name = node.name()
        operands = [child for child, _ in node.next_functions]
        if name.startswith("EmbeddingBackward"):
            self.emit(node, operands[0], lambda ndim: ndim - 1, None, gains, routed, ())
            return
        left, right, bias = next(
            (place for kind, place in (*_PRODUCTS.items(), *_WEIGHT_FIRST.items()) if name.startswith(kind))
        )
        bias_node = operands[bias] if bias is not None and bias < len(operands) else None
        if name.startswith(tuple(_WEIGHT_FIRST)):
            inputs = _present(operands[left])
            found = self.emit(node, operands[right or 1], lambda _: 0, bias_node, gains, routed, inputs)
        else:
            assert right is not None
            found = self.emit(
                node, operands[right], lambda ndim: ndim - 1, bias_node, gains, routed, _present(operands[left])
            ) or self.emit(
                node, operands[left], lambda ndim: ndim - 2, bias_node, gains, routed, _present(operands[right])
            )
        if not found:
            reason = f"a product of activations ({_short(name)}) reaches the residual stream without an output matrix"
            self.blocked.append(Blocked(reason, self.parameters_below(node)))

    def emit(
        self,
        node: Node,
        operand: Node | None,
        output_axis: Any,
        bias: Node | None,
        gains: tuple[GainStep, ...],
        routed: bool,
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
        self.writes.append(Write(node, name, axis, expert_axis, bias_name, gains, routed, inputs))
        return True

    def norm(
        self, node: Node, gains: tuple[GainStep, ...], routed: bool
    ) -> Iterator[tuple[Node, tuple[GainStep, ...], bool]]:
        operands = [child for child, _ in node.next_functions]
        weight = getattr(node, "_saved_weight", None)
        centred = node.name().startswith("NativeLayerNorm")
        gain_name = self.name_of(operands[1]) if len(operands) > 1 else None
        values = None if weight is None else _vector(weight, self.hidden)
        bias = operands[2] if len(operands) > 2 else None
        if bias is not None:
            yield bias, gains, routed
        if operands[0] is not None:
            yield operands[0], (*gains, GainStep(values, gain_name, centred)), routed

    def scaling(
        self, node: Node, gains: tuple[GainStep, ...], routed: bool
    ) -> Iterator[tuple[Node, tuple[GainStep, ...], bool]]:
        """A product of two tensors: go on along the one that carries the stream, keep the other as gain or scale."""
        operands = [child for child, _ in node.next_functions]
        saved = (_saved(node, "self"), _saved(node, "other"))
        for place, factor in ((0, 1), (1, 0)):
            carrier = operands[place]
            if carrier is None or self.only_parameters(carrier):
                continue
            kind = self.factor_kind(operands[factor], saved[factor])
            if kind == "scale":
                yield carrier, gains, routed
                return
            if kind == "gain":
                values = saved[factor]
                assert values is not None
                step = GainStep(_vector(values, self.hidden), self.name_of(operands[factor]))
                if node.name().startswith("DivBackward") and step.values is not None:
                    step = GainStep(step.values.reciprocal(), step.parameter)
                yield carrier, (*gains, step), routed
                return
        if all(operand is None or self.only_parameters(operand) for operand in operands):
            for operand in operands:
                if operand is not None:
                    yield operand, gains, routed
            return
        reason = "a write is multiplied elementwise by a gate that depends on the input"
        self.blocked.append(Blocked(reason, self.parameters_below(node)))

    def factor_kind(self, operand: Node | None, value: Tensor | None) -> str:
        """`scale`: the same number for the whole residual axis; `gain`: fixed per component; `gate`: neither."""
        if value is None:
            # autograd keeps no copy of python scalars; a tensor operand it did not keep carries no gradient to us
            return "scale" if operand is None else "gate"
        if value.ndim == 0 or value.shape[-1] == 1:
            return "scale"
        fixed = operand is None or self.only_parameters(operand)
        return "gain" if fixed and value.numel() == self.hidden else "gate"

    def addition(
        self, node: Node, gains: tuple[GainStep, ...], routed: bool
    ) -> Iterator[tuple[Node, tuple[GainStep, ...], bool]]:
        """Both terms are followed; a parameter beside a single product is that product's bias."""
        children = children_of(node)
        biases = [child for child in children if self.only_parameters(child) and parameter_axes(child) is not None]
        products = [child for child in children if child not in biases]
        if len(biases) == 1 and len(products) == 1:
            product = through_views(products[0])
            located = parameter_axes(biases[0])
            before, blocked = len(self.writes), len(self.blocked)
            if product is not None and located is not None and product.name().startswith(tuple(_PRODUCTS)):
                self.product(product, gains, routed)
                if len(self.writes) == before + 1 and self.writes[-1].bias is None:
                    write = self.writes.pop()
                    bias = self.names.get(id(located[0]))
                    self.writes.append(Write(**{**vars(write), "bias": bias}))
                    return
                del self.writes[before:], self.blocked[blocked:]
        for child in children:
            yield child, gains, routed

    def only_parameters(self, node: Node) -> bool:
        """Whether nothing below `node` depends on the input: parameters and constants alone."""
        if node not in self.parameter_only:
            stack, result, visited = [node], True, set()
            while stack and result:
                current = stack.pop()
                if current in visited:
                    continue
                visited.add(current)
                if hasattr(current, "variable"):
                    result = id(variable_of(current)) in self.names
                elif current.name().startswith(("EmbeddingBackward", *_PRODUCTS)):
                    result = False
                else:
                    stack.extend(children_of(current))
            self.parameter_only[node] = result
        return self.parameter_only[node]

    def name_of(self, node: Node | None) -> str | None:
        if node is None:
            return None
        return next(iter(self.parameters_below(node)), None)

    def parameters_below(self, node: Node, limit: int = 8) -> tuple[str, ...]:
        stack, visited = [node], set()
        names: list[str] = []
        while stack and len(names) < limit:
            current = stack.pop()
            if current in visited:
                continue
            visited.add(current)
            if hasattr(current, "variable"):
                name = self.names.get(id(variable_of(current)))
                if name is not None and name not in names:
                    names.append(name)
            stack.extend(children_of(current))
        return tuple(names)


def mixes_tokens(write: Write, writes: frozenset[Node]) -> str:
    """How the input of a write came about: `softmax` attention, another token `mixer`, or `none`.

    The walk stops at other writes (`writes`: their nodes), so that a parallel or later sublayer is judged by its own.
    """
    stack, visited, mixed = list(write.inputs), set(), "none"
    while stack:
        node = stack.pop()
        if node in visited or node in writes:
            continue
        visited.add(node)
        name = node.name()
        if name.startswith(("ScaledDotProduct", "FlexAttention")) or "Softmax" in name:
            return "softmax"
        operands = [child for child, _ in node.next_functions]
        if name.startswith(("Convolution", "Cumsum", "BmmBackward")) and not any(parameter_axes(o) for o in operands):
            mixed = "mixer"
        if name.startswith(("ConvolutionBackward", "CumsumBackward")):
            mixed = "mixer"
        stack.extend(children_of(node))
    return mixed


def _present(node: Node | None) -> tuple[Node, ...]:
    return () if node is None else (node,)


def _saved(node: Node, name: str) -> Tensor | None:
    value = getattr(node, f"_saved_{name}", None)
    return value if isinstance(value, Tensor) else None


def _vector(values: Tensor, hidden: int) -> Tensor | None:
    return values.detach().float().reshape(-1).cpu() if values.numel() == hidden else None


def _short(name: str) -> str:
    return name.partition("Backward")[0]


__all__ = ["Blocked", "GainStep", "Walk", "Write", "mixes_tokens", "walk"]
