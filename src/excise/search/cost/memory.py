"""How much memory each moment of a run takes: plain arithmetic on sizes. See docs/cost.md for the reasons.

Glossary: h hidden size, w width of what a port reads, b bytes of a number in the model, T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from excise.activations.second_moments import EXACT_WIDTH, SKETCH_RANK
from excise.search.cost.sizes import PortSize, Sizes

SMALL = 2
"""Rows in one pass below which activations are rather computed again than fewer rows taken."""

SHARE_OF_FREE = {"cuda": 0.85, "cpu": 0.5}
"""How much of the free memory one pass of a polish may take: others use the main memory as well."""

_WIDE = 4  # bytes of fp32
_EXACT = 8  # and of fp64
_CHUNK = 1 << 24  # numbers that a divergence widens at once (`log_softmax_chunks`)
_CHUNKS = 6  # how many tensors of that size it has at a time


@dataclass(frozen=True)
class Micro:
    """How a polish divides its steps: `rows` in one pass, and whether activations are computed again."""

    rows: int
    recompute: bool


def kept_per_token(sizes: Sizes, *, tokens: int) -> float:
    """Bytes of one token's activations, in all layers, that gradients need. Weights are frozen: they keep no input.

    Every layer's two norms keep what they widen (8h); a port what its factor reads (4w); attention queries, keys,
    values and output (4wb); an MLP gate, activated gate and value (3wb).
    """
    norms = 2 * _WIDE * sizes.hidden * sizes.layers
    matrices = sizes.matrices * tokens * (_WIDE + 2 * sizes.itemsize) * sizes.layers
    return norms + matrices + sum(_kept_at(port, sizes.itemsize) for port in sizes.ports)


def _kept_at(port: PortSize, itemsize: int) -> float:
    return port.share * port.width * (_WIDE + (3 if port.mlp else 4) * itemsize)


def step_bytes(sizes: Sizes, *, rows: int, tokens: int, positions: int, recompute: bool = False) -> int:
    """Peak of one forward and backward pass of a polish over `rows` rows, beyond what lies in memory between steps.

    tokens     per row
    positions  at the end of each row whose logits count
    recompute  keep every layer's input alone, and one layer's activations at a time
    """
    every = kept_per_token(sizes, tokens=tokens)
    layer = every / max(sizes.layers, 1)
    stream = sizes.hidden * sizes.itemsize * sizes.layers
    # gradients on their way back: about as much as a layer keeps
    trunk = rows * tokens * ((stream + 2 * layer) if recompute else (every + layer))
    return int(trunk + rows * positions * sizes.vocabulary * _logit_bytes(sizes.itemsize))


def _logit_bytes(itemsize: int) -> int:
    """Of one logit in a divergence: itself, its gradient twice while it is summed, and in fp32 both log-probabilities,
    a probability, and a gradient."""
    return 3 * itemsize + 4 * _WIDE


def choose_micro(sizes: Sizes, *, rows: int, tokens: int, positions: int, free: float) -> Micro:
    """The largest share of a step's `rows` that one pass can take in `free` bytes: all, a half, a third, ...

    Where not even `SMALL` rows fit, activations are computed again.
    """
    parts = sorted({-(-rows // parts) for parts in range(1, rows + 1)}, reverse=True)
    for recompute in (False, True):
        least = 1 if recompute else min(SMALL, rows)
        for part in parts:
            needed = step_bytes(sizes, rows=part, tokens=tokens, positions=positions, recompute=recompute)
            if part >= least and needed <= free:
                return Micro(part, recompute)
    return Micro(1, True)


def pass_bytes(sizes: Sizes, *, rows: int, tokens: int, positions: int) -> int:
    """Peak of one forward pass without gradients: one layer's activations, the stream, and the logits."""
    inner = max((port.share * port.width * (4 if port.mlp else 5) for port in sizes.ports), default=0.0)
    one = (inner + 3 * sizes.hidden) * sizes.itemsize + 2 * _WIDE * sizes.hidden
    matrices = sizes.matrices * tokens * (_WIDE + sizes.itemsize)
    return int(rows * tokens * (one + matrices) + rows * positions * sizes.vocabulary * sizes.itemsize)


def compare_bytes(sizes: Sizes, *, rows: int, tokens: int, positions: int) -> int:
    """Peak of a divergence: a pass, its logits once more without padding, the base's, and some of each in fp32."""
    logits = rows * positions * sizes.vocabulary
    widened = _CHUNKS * _WIDE * min(logits, _CHUNK)
    return pass_bytes(sizes, rows=rows, tokens=tokens, positions=positions) + 2 * logits * sizes.itemsize + widened


def generation_bytes(sizes: Sizes, *, rows: int, tokens: int) -> int:
    """Peak of generating: the cache (a layer's twice, while it grows) and the pass that reads the prompts."""
    cache = rows * tokens * sizes.keys * sizes.itemsize * (sizes.layers + 1)
    return cache + pass_bytes(sizes, rows=rows, tokens=tokens, positions=1)


def reference_bytes(sizes: Sizes, *, rows: int, positions: int, most: int = 2 << 30) -> int:
    """What the base model's logits take; beyond `most` they are in a file."""
    return min(rows * positions * sizes.vocabulary * sizes.itemsize, most)


def _moment(width: int, *, summing: bool) -> int:
    if width <= EXACT_WIDTH:
        return width * width * (_EXACT if summing else _WIDE)
    return (2 if summing else 1) * SKETCH_RANK * width * _WIDE


def collecting_bytes(sizes: Sizes) -> int:
    """Peak of the statistics: both sums of every port, and the results that are made from them."""
    return statistics_bytes(sizes) + sum(2 * _moment(port.width, summing=True) for port in sizes.ports if port.measured)


def statistics_bytes(sizes: Sizes) -> int:
    """What the statistics of all ports take once they are collected: two second moments each."""
    return sum(2 * _moment(port.width, summing=False) for port in sizes.ports if port.measured)


def ridge_bytes(sizes: Sizes) -> int:
    """What is factored of them, on the device: a triangle each, or the basis of a sketch."""
    return sum(_moment(port.width, summing=False) for port in sizes.ports if port.measured)


def factor_bytes(sizes: Sizes, *, rank: int = 1) -> int:
    """Both factors of every port, with their gradients and Adam's two moments."""
    return sum(4 * _WIDE * rank * (port.width + sizes.hidden) for port in sizes.ports)


def proof_bytes(sizes: Sizes, *, large: int) -> int:
    """The second copy of the model that a bake is proven with; a small one, of under `large` numbers, in fp32."""
    return sizes.weight_bytes + (sizes.parameters * _WIDE if sizes.parameters < large else 0)
