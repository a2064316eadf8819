"""From one trace to the writers: every layer is walked, and what the walks found is put together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.autograd.graph import Node

from excise.edit import EMBEDDING_LAYER, Writer
from excise.model.evidence import Evidence, expand
from excise.model.findings import Path, Walk, Write
from excise.model.graph import walk
from excise.model.stack import Stack
from excise.model.sublayers import role_of
from excise.model.trace import Trace


@dataclass(frozen=True)
class Unresolved:
    """Something that reaches the residual stream and cannot be edited exactly, and why."""

    layer: int
    parameters: tuple[str, ...]
    reason: str


class Assembly:
    """Walks every layer, and puts together what the walks found.

    writers     by parameter name
    paths       by parameter name: from the outputs of its own layer and of all later ones back to the write
    unresolved  what is no plain write
    fixed       whether something that is not learned is added to the embeddings
    """

    def __init__(self, model: nn.Module, trace: Trace, stack: Stack) -> None:
        self.model, self.trace, self.stack = model, trace, stack
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.aliases: dict[int, list[str]] = defaultdict(list)
        for name, parameter in self.parameters.items():
            self.aliases[id(parameter)].append(name)
        self.names = {key: names[0] for key, names in self.aliases.items()}
        self.place = {name: index for index, name in enumerate(stack.layers)}
        self.writers: dict[str, Writer] = {}
        self.paths: dict[str, dict[Path, None]] = {}
        self.unresolved: list[Unresolved] = []
        self.vouched: dict[str, Evidence] = {}
        self.stream: frozenset[Node] = frozenset()
        self.fixed = False

    def assemble(self, evidence: Sequence[Evidence]) -> None:
        """Fill in `writers`, `paths` and `unresolved`. Raises `InputError` for evidence that does not fit the model."""
        walks = [(self.before(number), self.inside(number)) for number in range(len(self.stack.calls))]
        self.stream = frozenset(node for pair in walks for found in pair for node in found.passed)
        self.fixed = walks[0][0].constant
        walks = [
            (self.plainly(number, before), self.plainly(number, inside))
            for number, (before, inside) in enumerate(walks)
        ]
        self.vouched = dict(expand(evidence, self.parameters, hidden=self.stack.hidden))
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
        for name in self.vouched:
            self.vouch(name, self.layer_of(name), [()])

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
        """From `starts` back to `ends`, or to where nothing came before."""
        return walk(starts, streams=ends, names=self.names, hidden=self.stack.hidden)

    def take(self, found: Walk, layer: int, later: list[Path], *, first: bool) -> None:
        """Record the writes of one walk; `later` are the ways from its output on."""
        attached = {write.bias for write in found.writes}
        for write in sorted(found.writes, key=lambda write: len(write.gains)):
            if write.parameter in attached or write.parameter in self.vouched:
                continue
            for writer in self.with_siblings(self.writer(layer, write, first)):
                self.writers.setdefault(writer.parameter, writer)
                ways = self.paths.setdefault(writer.parameter, {})
                ways |= dict.fromkeys(path + write.gains for path in later)
        for blocked in found.blocked:
            known = [name for name in blocked.parameters if name in self.vouched]
            if not known:
                self.unresolved.append(Unresolved(layer, blocked.parameters, blocked.reason))
            for name in known:
                self.vouch(name, layer, [path + blocked.gains for path in later])

    def vouch(self, name: str, layer: int, ways: list[Path]) -> None:
        """Record a writer that the evidence names; what the walk met of the way from it to the stream counts."""
        entry = self.vouched[name]
        self.writers[name] = Writer(
            parameter=name,
            layer=EMBEDDING_LAYER if entry.role == "embedding" else layer,
            role=entry.role,
            axis=entry.axis,
            expert_axis=entry.expert_axis,
            bias=entry.bias,
            tied=self.tied(name),
        )
        if not self.paths.get(name):
            self.paths[name] = dict.fromkeys(ways)

    def layer_of(self, name: str) -> int:
        """The layer that a parameter lies in, by its name; -1 outside of all."""
        return next((index for layer, index in self.place.items() if name.startswith(f"{layer}.")), EMBEDDING_LAYER)

    def tied(self, name: str) -> tuple[str, ...]:
        """The other names of a parameter."""
        return tuple(other for other in self.aliases[id(self.parameters[name])] if other != name)

    def writer(self, layer: int, write: Write, first: bool) -> Writer:
        """The writer that a write belongs to. `first`: it comes before all layers."""
        role = role_of(write, self.stream - {write.node}, first=first)
        return Writer(
            parameter=write.parameter,
            layer=EMBEDDING_LAYER if role == "embedding" else layer,
            role=role,
            axis=write.axis,
            expert_axis=write.expert_axis,
            bias=write.bias,
            gain=next((step.parameter for step in write.gains if step.parameter is not None), None),
            module=self.hook_place(write),
            tied=self.tied(write.parameter),
        )

    def hook_place(self, write: Write) -> str | None:
        """The module that owns the parameter, if what it returns is this write and nothing else; else None."""
        owner = write.parameter.rpartition(".")[0]
        node, width = self.trace.owned.get(owner, (None, 0))
        if node is None or width != self.stack.hidden:
            return None
        inner = self.walk([node], ())
        found = {(inside.parameter, inside.bias) for inside in inner.writes}
        plain = not inner.blocked and not any(inside.gains or inside.normed for inside in inner.writes)
        return owner if plain and found == {(write.parameter, write.bias)} else None

    def with_siblings(self, writer: Writer) -> list[Writer]:
        """The writer and, for an expert in a list of modules, the same parameter of every other expert in that list.

        The survey's few tokens do not visit every expert.
        """
        if writer.role != "expert" or writer.expert_axis is not None:
            return [writer]
        parts = writer.parameter.split(".")
        shape = self.parameters[writer.parameter].shape
        for place in range(len(parts) - 2, 0, -1):
            prefix, mine = ".".join(parts[:place]), ".".join(parts[: place + 1])
            bank = self.model.get_submodule(prefix) if parts[place].isdigit() and mine not in self.place else None
            if not isinstance(bank, nn.ModuleList):
                continue
            renamed = [_move(writer, mine, f"{prefix}.{index}") for index in range(len(bank))]
            same = [other for other in renamed if getattr(self.parameters.get(other.parameter), "shape", None) == shape]
            return [writer, *(other for other in same if other.parameter not in self.writers)]
        return [writer]


def _later_paths(walks: list[tuple[Walk, Walk]]) -> list[list[Path]]:
    """For every call, the ways from its output to itself and to all later outputs, without repetition.

    One that is empty in most models: nothing but additions happens to the stream itself.
    """
    later: list[list[Path]] = [[()]]
    for before, inside in reversed(walks[1:]):
        steps = [one + other for one in inside.carried or ((),) for other in before.carried or ((),)]
        later.append(list(dict.fromkeys([(), *(path + step for path in later[-1] for step in steps)])))
    return later[::-1]


def _move(writer: Writer, old: str, new: str) -> Writer:
    def rename(name: str | None) -> str | None:
        return None if name is None else new + name.removeprefix(old)

    parameter = new + writer.parameter.removeprefix(old)
    return replace(writer, parameter=parameter, bias=rename(writer.bias), module=rename(writer.module))
