"""The survey: every writer of a model's residual stream, found without a table of module names.

One forward pass with gradients on a few tokens (`excise.model.trace`), from which the decoder layers are told
(`excise.model.stack`); from the output of each the graph is walked back to its input (`excise.model.graph`). The probe
(`excise.model.probe`) then proves the result numerically.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from excise.edit import ModelIdentity, Writer
from excise.errors import SurveyError
from excise.model.assembly import Assembly, Unresolved
from excise.model.causal import causal_tokens, check_causal
from excise.model.evidence import Evidence
from excise.model.findings import Path
from excise.model.gains import with_gains
from excise.model.precision import LARGE, is_offloaded, is_outline, is_small, most_exactly, parameter_count
from excise.model.shapes import ShapesOnly, outline_of
from excise.model.stack import find_stack
from excise.model.trace import Trace
from excise.model.weights import is_quantised

_VALUES_NEEDED = (RuntimeError, ValueError, TypeError, IndexError)  # what a pass on shapes alone may stumble over


@dataclass(frozen=True)
class Survey:
    """What writes to the residual stream of a model.

    layer_names  the decoder layers, by module name
    hidden       width of the residual stream
    writers      every parameter whose product is added to it, embeddings first
    unresolved   what was seen and cannot be edited exactly (empty for a model that is fully covered)
    paths        by parameter name, what its write passes on its way to the outputs of its own layer and of all later
                 ones; missing where that is nothing but the residual add
    fixed        whether something that is no parameter (a table of sinusoids, or no more than a zero) is added to the
                 embeddings: it stays, the same for every prompt
    """

    layer_names: tuple[str, ...]
    hidden: int
    writers: tuple[Writer, ...]
    unresolved: tuple[Unresolved, ...]
    identity: ModelIdentity
    paths: Mapping[str, tuple[Path, ...]] = field(repr=False, default_factory=dict)
    fixed: bool = False

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layer_names)

    @property
    def layers_path(self) -> str:
        """The module list that holds the first decoder layer; in most models it holds them all."""
        return self.layer_names[0].rpartition(".")[0]

    @property
    def coverage(self) -> float:
        """The share of what writes to the stream that can be edited exactly; 1.0 when nothing is left out."""
        total = len(self.writers) + len(self.unresolved)
        return len(self.writers) / total if total else 0.0

    def at_writer(self, writer: Writer, directions: Float[Tensor, "rank hidden"]) -> Float[Tensor, "row width"]:
        """The directions to remove from the writer's output so that its *write* loses `directions` for good.

        Behind a gained norm the write is g ⊙ u/rms(u), so r·write = 0 needs (g ⊙ r)·u = 0; a LayerNorm also removes the
        mean of u. Where a write goes several ways (the taps of a convolution, or a stream that is itself normalised by
        every later layer), each way asks for a direction of its own; a writer of a part of the stream's components gets
        that part. Not normalised.
        """
        at_stream = directions.detach().float().cpu()
        return torch.cat([_before(path, at_stream) for path in self.paths.get(writer.parameter, ((),))])

    def without(self, parameter: str) -> Survey:
        """The survey with one writer missing: for tests that the probe notices."""
        return replace(self, writers=tuple(writer for writer in self.writers if writer.parameter != parameter))


def survey(model: nn.Module, *, identity: ModelIdentity, evidence: Sequence[Evidence] = ()) -> Survey:
    """Find every writer of a Transformers decoder model.

    evidence  writers that somebody vouches for, where the survey cannot see them

    Leaves the model as it was (gradients, hooks, training mode). A model of a billion parameters or more is surveyed
    without its weights where that is enough; one whose weights are quantised, or that has none, always. Raises
    `SurveyError` when no chain of decoder layers can be seen, or the model looks at later tokens (it is not a causal
    language model).
    """
    if is_outline(model):
        try:
            return _without_weights(model, identity, evidence)
        except _VALUES_NEEDED as error:
            raise SurveyError(
                f"{identity.name} cannot be surveyed without its weights: what it runs depends on their values",
                hint="inspect it with its weights",
            ) from error
    if parameter_count(model) >= LARGE or is_offloaded(model) or is_quantised(model):
        found = _from_outline(model, identity, evidence)
        if found is not None:
            return found
        if is_quantised(model):  # what its products are made of does not show in the graph
            raise SurveyError(
                f"{identity.name} cannot be surveyed by its shapes, and its weights are quantised",
                hint="load it unquantised, or with --quantize 8bit or 4bit where the architecture is a common one",
            )
        if is_offloaded(model):
            raise SurveyError(
                f"{identity.name} has to be surveyed with its weights, and some of them are offloaded",
                hint="load it on one device, or in a smaller dtype",
            )
    return most_exactly(model, lambda _: _survey(model, identity, evidence))  # else rounding would blur the gains


def _from_outline(model: nn.Module, identity: ModelIdentity, evidence: Sequence[Evidence]) -> Survey | None:
    """The survey of a loaded model by its shapes, without a pass through its weights; None where they are needed."""
    outline = outline_of(model)
    if outline is None:
        return None
    try:
        found = _without_weights(outline, identity, evidence)
    except _VALUES_NEEDED:
        return None
    paths = with_gains(found.paths, model, hidden=found.hidden)
    return None if found.unresolved or found.fixed or paths is None else replace(found, paths=paths)


def _without_weights(model: nn.Module, identity: ModelIdentity, evidence: Sequence[Evidence]) -> Survey:
    with ShapesOnly():
        return _survey(model, identity, evidence)


def _survey(model: nn.Module, identity: ModelIdentity, evidence: Sequence[Evidence]) -> Survey:
    tokens = causal_tokens(model, rows=2, length=30 if is_small(model) else 8, seed=0)
    with _evaluating(model):
        trace = Trace.record(model, tokens)
        stack = find_stack(model, trace, tokens)
        if not all(call.whole for call in stack.calls):
            trace = Trace.record(model, tokens, always=True)
            stack = find_stack(model, trace, tokens)
        check_causal(model, stack.calls[-1].stream, tokens)
    found = Assembly(model, trace, stack)
    found.assemble(evidence)
    return Survey(
        layer_names=stack.layers,
        hidden=stack.hidden,
        writers=tuple(sorted(found.writers.values(), key=lambda writer: writer.layer)),
        unresolved=tuple(dict.fromkeys(found.unresolved)),
        identity=identity,
        paths={name: tuple(paths) for name, paths in found.paths.items() if tuple(paths) != ((),)},
        fixed=found.fixed,
    )


def _before(path: Path, directions: Float[Tensor, "rank hidden"]) -> Float[Tensor, "rank width"]:
    """The directions as they are where a path begins."""
    for step in path:
        if step.part is not None:
            directions = directions[..., step.part]
        if step.values is not None:
            directions = directions * step.values
        if step.centred:
            directions = directions - directions.mean(dim=-1, keepdim=True)
    return directions


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


__all__ = ["Survey", "Unresolved", "survey"]
