"""What kind of sublayer a write ends: attention, another mixer of tokens, a feed-forward network, an expert."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch.autograd.graph import Node

from excise.edit import Role
from excise.model.findings import Write
from excise.model.views import NONLINEAR, below, children_of, parameter_axes, through_views

_MIXING = ("ConvolutionBackward", "Cumsum")
_ATTENTION = ("ScaledDotProduct", "FlexAttention", "Logsumexp")
_ROLES: Mapping[str, Role] = {"softmax": "attention", "mixer": "mixer", "nonlinear": "mlp", "linear": "mlp"}


def role_of(write: Write, stream: frozenset[Node], *, first: bool) -> Role:
    """The role of a write.

    stream  the nodes that lie on the residual stream
    first   whether it comes before all layers: what is linear there is part of the embeddings
    """
    if write.node.name().startswith("Embedding"):
        return "embedding"
    kind = _origin(write, stream)
    if first and kind == "linear":
        return "embedding"
    if write.expert_axis is not None or write.routed:
        return "expert"
    return _ROLES[kind]


def _origin(write: Write, stream: Collection[Node]) -> str:
    """How the input of a write came about: `softmax` attention, another token `mixer`, another `nonlinear` function, or
    `linear`ly.

    The walk goes outwards from the write, so that the nearest mixing counts, and stops where the sublayer's input comes
    from (`stream`: nodes on the stream, and other writes), so that another sublayer does not.
    """
    kind = "linear"
    selected: set[int] = set()
    for node in below(write.inputs, stops=stream):
        name = node.name()
        if name.startswith(_ATTENTION) or "Softmax" in name:
            return "softmax"
        if name.startswith("BmmBackward") and not _weighs(node):
            factors = [through_views(child) for child in children_of(node)]
            return "softmax" if any(factor and "Softmax" in factor.name() for factor in factors) else "mixer"
        if name.startswith(_MIXING):
            return "mixer"
        if name.startswith("SelectBackward") and parameter_axes(node) is None:
            selected.add(int(getattr(node, "_saved_index")))  # noqa: B009 - a C++ attribute
        kind = "nonlinear" if name.startswith(NONLINEAR) else kind
    return "mixer" if len(selected) > 2 else kind  # a loop over tokens selects them one by one


def _weighs(node: Node) -> bool:
    """Whether one factor of a product is a parameter."""
    return any(parameter_axes(operand) for operand, _ in node.next_functions)
