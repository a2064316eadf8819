"""What a walk over the autograd graph of a layer finds: writes, what lies between them and the stream, dead ends."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import Node


@dataclass(frozen=True, eq=False)
class GainStep:
    """What happens to a write on its way to the residual add.

    values     the factor of every component; None where a norm has no gain, or the weights are not there to be read
    parameter  the name of the gain
    centred    whether a LayerNorm also removes the mean
    part       the components that are written, where the stream is put together from several vectors
    """

    values: Float[Tensor, " hidden"] | None = None
    parameter: str | None = None
    centred: bool = False
    part: slice | None = None


Path = tuple[GainStep, ...]
"""What a write passes on its way to the stream, from the stream back to the write."""


@dataclass(frozen=True)
class Write:
    """One product (or lone vector) that is added to the residual stream, as the walk met it.

    routed  whether an index sends tokens to it, as to an expert
    normed  whether it passes a norm: scaled by a number that depends on the write itself
    inputs  what it was computed from
    """

    node: Node
    parameter: str
    axis: int
    expert_axis: int | None
    bias: str | None
    gains: Path
    routed: bool
    normed: bool
    inputs: tuple[Node, ...]


@dataclass(frozen=True)
class Blocked:
    """A path to the residual stream that is not a plain write, with what was seen there and on the way to it."""

    reason: str
    parameters: tuple[str, ...]
    gains: Path


@dataclass(frozen=True)
class Walk:
    """What one walk found.

    carried   the paths by which the stream itself arrives: one without gains in most models
    passed    the nodes that lie on the stream: where a sublayer that writes to it gets its input from
    constant  whether something was added that is no parameter and does not depend on one
    """

    writes: tuple[Write, ...]
    blocked: tuple[Blocked, ...]
    carried: tuple[Path, ...]
    passed: frozenset[Node]
    constant: bool
