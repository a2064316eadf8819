"""The survey: every writer of a model's residual stream, found without a table of module names.

One forward pass with gradients on a few tokens (`excise.model.trace`), from which the decoder layers are told
(`excise.model.stack`); from the output of each the graph is walked back to its input (`excise.model.graph`). The probe
(`excise.model.probe`) then proves the result numerically.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.graph import Node

from excise.edit import EMBEDDING_LAYER, ModelIdentity, Role, Writer
from excise.errors import SurveyError
from excise.model.graph import Path, Walk, Write, mixes_tokens, walk
from excise.model.inputs import run, sample_tokens
from excise.model.stack import Stack, find_stack, token_axis
from excise.model.trace import Trace


@dataclass(frozen=True)
class Unresolved:
    """Something that reaches the residual stream and cannot be edited exactly, and why."""

    layer: int
    parameters: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Survey:
    """What writes to the residual stream of a model.

    layer_names  the decoder layers, by module name
    hidden       width of the residual stream
    writers      every parameter whose product is added to it, embeddings first
    unresolved   what was seen and cannot be edited exactly (empty for a model that is fully covered)
    paths        by parameter name, what its write passes on its way to the outputs of its own layer and of all later
                 ones; missing where that is nothing but the residual add
    fixed        whether something that is not learned (a table of sinusoids) is added to the embeddings: it stays, the
                 same for every prompt
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

    def at_writer(self, writer: Writer, directions: Float[Tensor, "rank hidden"]) -> Float[Tensor, "rows hidden"]:
        """The directions to remove from the writer's output so that its *write* loses `directions` for good.

        Behind a gained norm the write is g ⊙ u/rms(u), so r·write = 0 needs (g ⊙ r)·u = 0; a LayerNorm also removes the
        mean of u. Where a write goes several ways (the taps of a convolution, or a stream that is itself normalised by
        every later layer), each way asks for a direction of its own. Not normalised.
        """
        at_stream = directions.detach().float().cpu()
        return torch.cat([_before(path, at_stream) for path in self.paths.get(writer.parameter, ((),))])

    def without(self, parameter: str) -> Survey:
        """The survey with one writer missing: for tests that the probe notices."""
        return replace(self, writers=tuple(writer for writer in self.writers if writer.parameter != parameter))


def survey(model: nn.Module, *, identity: ModelIdentity) -> Survey:
    """Find every writer of a Transformers decoder model.

    Leaves the model as it was (gradients, hooks, training mode). Raises `SurveyError` when no chain of decoder layers
    can be seen, or the model looks at later tokens (it is not a causal language model).
    """
    tokens = sample_tokens(model)
    tokens[1:] = tokens[:1]
    tokens[1, -1] = tokens[0, 0]  # rows that differ in their last token alone show whether the model is causal
    with _evaluating(model):
        trace = Trace.record(model, tokens)
        stack = find_stack(model, trace, tokens)
        if not all(call.whole for call in stack.calls):
            trace = Trace.record(model, tokens, always=True)
            stack = find_stack(model, trace, tokens)
        _check_causal(model, stack, tokens)
    return _Assembly(model, trace, stack).result(identity)


class _Assembly:
    """Walks every layer, and puts together what the walks found."""

    def __init__(self, model: nn.Module, trace: Trace, stack: Stack) -> None:
        self.model, self.trace, self.stack = model, trace, stack
        self.names = _names(model)
        self.place = {name: index for index, name in enumerate(stack.layers)}
        self.writers: dict[str, Writer] = {}
        self.paths: dict[str, dict[Path, None]] = {}
        self.unresolved: list[Unresolved] = []
        self.stream: frozenset[Node] = frozenset()

    def result(self, identity: ModelIdentity) -> Survey:
        walks = [(self.before(number), self.inside(number)) for number in range(len(self.stack.calls))]
        self.stream = frozenset(node for pair in walks for found in pair for node in found.passed)
        walks = [
            (self.plainly(number, before), self.plainly(number, inside))
            for number, (before, inside) in enumerate(walks)
        ]
        later = _later_paths(walks)
        for number, (before, inside) in enumerate(walks):
            layer = self.place[self.stack.calls[number].layer]
            first = not before.carried  # no layer comes before it: these are the embeddings
            through = [path + step for path in later[number] for step in inside.carried]
            self.take(before, layer, [(), *through] if first else through, first=first)
            self.take(inside, layer, later[number], first=False)
        for name in self.stack.idle:
            self.unresolved.append(Unresolved(self.place[name], (), "the layer was not run on text: not surveyed"))
        if not any(inside.carried for _, inside in walks):
            self.unresolved.append(Unresolved(0, (), "no layer carries its input through: no residual stream"))
        return Survey(
            layer_names=self.stack.layers,
            hidden=self.stack.hidden,
            writers=tuple(sorted(self.writers.values(), key=lambda writer: writer.layer)),
            unresolved=tuple(dict.fromkeys(self.unresolved)),
            identity=identity,
            paths={name: tuple(paths) for name, paths in self.paths.items() if tuple(paths) != ((),)},
            fixed=walks[0][0].constant,
        )

    def plainly(self, number: int, found: Walk) -> Walk:
        """The walk with one way for the stream itself. Where it goes on in two, as it is and behind a gain, what was
        removed from it comes back with every layer: no finite number of directions would do."""
        if len(found.carried) < 2:
            return found
        gains = dict.fromkeys(step.parameter for path in found.carried for step in path if step.parameter is not None)
        reason = "the layer adds its input once more behind a gained norm: a direction that was removed comes back"
        self.unresolved.append(Unresolved(self.place[self.stack.calls[number].layer], tuple(gains), reason))
        return replace(found, carried=(min(found.carried, key=len),))

    def inside(self, number: int) -> Walk:
        """From a layer's outputs back to its inputs, or to what other layers gave out."""
        call = self.stack.calls[number]
        ends = {node for other in self.stack.calls for node in (*other.sources, *other.results)}
        return self.walk(call.results, ends - set(call.results))

    def before(self, number: int) -> Walk:
        """From a layer's inputs back to what earlier layers gave out: the embeddings, or what is added in between."""
        ends = {node for other in self.stack.calls[:number] for node in other.results}
        return self.walk(self.stack.calls[number].sources, ends)

    def walk(self, starts: Collection[Node], ends: Collection[Node]) -> Walk:
        return walk(starts, streams=ends, names=self.names, hidden=self.stack.hidden)

    def take(self, found: Walk, layer: int, later: list[Path], *, first: bool) -> None:
        """Record the writes of one walk; `later` are the ways from its output on."""
        attached = {write.bias for write in found.writes}
        for write in sorted(found.writes, key=lambda write: len(write.gains)):
            if write.parameter in attached:
                continue
            for writer in _with_siblings(self.writer(layer, write, first), self.model, self.stack.layers):
                self.writers.setdefault(writer.parameter, writer)
                ways = self.paths.setdefault(writer.parameter, {})
                ways |= dict.fromkeys(path + write.gains for path in later)
        self.unresolved += [Unresolved(layer, blocked.parameters, blocked.reason) for blocked in found.blocked]

    def writer(self, layer: int, write: Write, first: bool) -> Writer:
        role = _role(write, self.stream - {write.node}, first=first)
        return Writer(
            parameter=write.parameter,
            layer=EMBEDDING_LAYER if role == "embedding" else layer,
            role=role,
            axis=write.axis,
            expert_axis=write.expert_axis,
            bias=write.bias,
            gain=next((step.parameter for step in write.gains if step.parameter is not None), None),
            module=self.hook_place(write),
            tied=_aliases(self.model, write.parameter),
        )

    def hook_place(self, write: Write) -> str | None:
        """The module that owns the parameter, if what it returns is this write and nothing else; else None."""
        owner = write.parameter.rpartition(".")[0]
        node, width = self.trace.owned.get(owner, (None, 0))
        if node is None or width != self.stack.hidden:
            return None
        inner = self.walk([node], ())
        found = {(inside.parameter, inside.bias) for inside in inner.writes}
        plain = not inner.blocked and not any(inside.gains for inside in inner.writes)
        return owner if plain and found == {(write.parameter, write.bias)} else None


def _later_paths(walks: list[tuple[Walk, Walk]]) -> list[list[Path]]:
    """For every call, the ways from its output to itself and to all later outputs, without repetition.

    One that is empty in most models: nothing but additions happens to the stream itself.
    """
    later: list[list[Path]] = [[()]]
    for before, inside in reversed(walks[1:]):
        steps = [one + other for one in inside.carried or ((),) for other in before.carried or ((),)]
        later.append(list(dict.fromkeys([(), *(path + step for path in later[-1] for step in steps)])))
    return later[::-1]


def _before(path: Path, directions: Float[Tensor, "rank hidden"]) -> Float[Tensor, "rank hidden"]:
    """The directions as they are where a path begins."""
    for step in path:
        if step.part is not None:
            directions = directions[..., step.part]
        if step.values is not None:
            directions = directions * step.values
        if step.centred:
            directions = directions - directions.mean(dim=-1, keepdim=True)
    return directions


_ROLES: Mapping[str, Role] = {"softmax": "attention", "mixer": "mixer", "nonlinear": "mlp", "linear": "mlp"}


def _role(write: Write, stream: frozenset[Node], *, first: bool) -> Role:
    """`first`: whether the write comes before all layers. What is linear there is part of the embeddings."""
    if write.node.name().startswith("Embedding"):
        return "embedding"
    kind = mixes_tokens(write, stream)
    if first and kind == "linear":
        return "embedding"
    if write.expert_axis is not None or write.routed:
        return "expert"
    return _ROLES[kind]


def _with_siblings(writer: Writer, model: nn.Module, layers: tuple[str, ...]) -> list[Writer]:
    """The writer and, for an expert in a list of modules, the same parameter of every other expert in that list.

    The survey's few tokens do not visit every expert.
    """
    if writer.role != "expert" or writer.expert_axis is not None:
        return [writer]
    parts = writer.parameter.split(".")
    parameters = dict(model.named_parameters())
    for place in range(len(parts) - 2, 0, -1):
        prefix, mine = ".".join(parts[:place]), ".".join(parts[: place + 1])
        bank = model.get_submodule(prefix) if parts[place].isdigit() and mine not in layers else None
        if not isinstance(bank, nn.ModuleList):
            continue
        renamed = [_move(writer, mine, f"{prefix}.{index}") for index in range(len(bank))]
        shape = parameters[writer.parameter].shape
        return [other for other in renamed if getattr(parameters.get(other.parameter), "shape", None) == shape]
    return [writer]


def _move(writer: Writer, old: str, new: str) -> Writer:
    def rename(name: str | None) -> str | None:
        return None if name is None else new + name.removeprefix(old)

    parameter = new + writer.parameter.removeprefix(old)
    return replace(writer, parameter=parameter, bias=rename(writer.bias), module=rename(writer.module))


def _aliases(model: nn.Module, parameter: str) -> tuple[str, ...]:
    tensor = model.get_parameter(parameter)
    return tuple(
        name for name, other in model.named_parameters(remove_duplicate=False) if other is tensor and name != parameter
    )


def _names(model: nn.Module) -> dict[int, str]:
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), name)
    return names


def _check_causal(model: nn.Module, stack: Stack, tokens: Int[Tensor, "rows length"]) -> None:
    """Refuse models whose earlier positions change with a later token, unless they go on from a cache.

    A prefix language model looks at the whole prompt and then generates token by token; an encoder has no cache.
    """
    stream = stack.calls[-1].stream
    if stream.is_meta:
        return
    axis = token_axis(stream.shape, tokens)
    if axis is None:
        return
    first, second = stream.float().movedim((axis, axis + 1), (0, 1)).unbind()
    change = (first - second).abs().flatten(start_dim=1).amax(dim=-1)
    tolerance = 1e-3 if stream.dtype == torch.float32 else 3e-2
    if float(change[:-1].max()) > tolerance * float(change[-1]) and not _caches(model, tokens):
        raise SurveyError(
            f"{type(model).__name__} looks at later tokens: it is not a causal language model",
            hint="excise edits decoder language models (text generation)",
        )


def _caches(model: nn.Module, tokens: Int[Tensor, "rows length"]) -> bool:
    with torch.no_grad():
        output = run(model, tokens, use_cache=True)
    return getattr(output, "past_key_values", None) is not None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
