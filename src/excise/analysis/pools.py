"""The parts of a model that are compared with one another: all layers, writers, heads, neurons or experts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from excise.analysis.attribution import Attribution
from excise.edit import EMBEDDING_LAYER, Edit, Writer
from excise.edit.edit import SurveyLike

Kind = Literal["layer", "writer", "head", "neuron", "expert"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MASKABLE: tuple[Kind, ...] = ("head", "neuron", "expert")
"""The kinds that can be ablated by an edit of a few inputs of a writer."""


@dataclass(frozen=True)
class Component:
    """One part of the model, and what it contributes to the direction.

    layer         -1 for the embeddings
    parameter     the writer that it is or belongs to; None for a layer and for the embeddings
    index         which head, neuron or expert of that writer; (expert, neuron) for a neuron of a bank
    contribution  along the direction, in units of the residual stream: positive ones write the behavior
    share         of the whole difference between target and baseline prompts
    """

    kind: Kind
    layer: int
    parameter: str | None
    index: tuple[int, ...]
    contribution: float
    share: float

    @property
    def label(self) -> str:
        """Its name for people, unique in the model together with its parameter."""
        if self.layer == EMBEDDING_LAYER:
            return "embeddings"
        where = f"layer {self.layer}"
        if len(self.index) == 2:
            return f"{where} expert {self.index[0]} neuron {self.index[1]}"
        return " ".join([where, *([] if self.kind in ("layer", "writer") else [self.kind]), *map(str, self.index)])

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "kind": self.kind,
            "layer": self.layer,
            "parameter": self.parameter,
            "index": list(self.index),
            "contribution": self.contribution,
            "share": self.share,
        }


@dataclass(frozen=True)
class Member:
    """A writer's components of one kind: an axis for each number that tells them apart."""

    writer: Writer | None
    layer: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Pool:
    """All components of one kind, member after member."""

    kind: Kind
    members: tuple[Member, ...]
    values: Float[Tensor, " component"]
    gap: float

    def __len__(self) -> int:
        return len(self.values)

    def at(self, place: int) -> Component:
        """One component, by its place among the values."""
        starts = [0, *accumulate(prod(member.shape) for member in self.members)]
        number = bisect_right(starts, place) - 1
        member, rest, index = self.members[number], place - starts[number], []
        for size in reversed(member.shape):
            rest, position = divmod(rest, size)
            index.append(position)
        value = float(self.values[place])
        return Component(
            kind=self.kind,
            layer=member.layer,
            parameter=None if member.writer is None else member.writer.parameter,
            index=tuple(reversed(index)),
            contribution=value,
            share=value / self.gap if self.gap else 0.0,
        )

    def largest(self, count: int) -> tuple[Component, ...]:
        """Those that contribute most, either way."""
        places = self.values.abs().argsort(descending=True, stable=True)[:count]
        return tuple(self.at(place) for place in places.tolist())

    def writing(self, count: int) -> list[int]:
        """The places of those that write the behavior most, at most so many."""
        places = self.values.argsort(descending=True, stable=True)[:count]
        return [place for place in places.tolist() if float(self.values[place]) > 0]

    def others(self, taken: Iterable[int], count: int, *, seed: int) -> list[int]:
        """So many places at random, none of those taken."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        free = torch.ones(len(self), dtype=torch.bool)
        free[list(taken)] = False
        return [int(place) for place in order[free[order]][:count]]


def pools(found: Attribution) -> dict[Kind, Pool]:
    """The components of each kind that the model has."""
    members: dict[Kind, list[tuple[Member, Tensor]]] = {kind: [] for kind in KINDS}
    for layer, total in enumerate(found.layer_totals()):
        members["layer"].append((Member(None, layer, ()), torch.tensor(total)))
    members["writer"].append((Member(None, EMBEDDING_LAYER, ()), found.stream[0]))
    for writer in found.writers:
        name, parts = writer.parameter, found.parts.get(writer.parameter)
        listed = writer.role == "expert" and writer.expert_axis is None and name not in found.whole
        if name in found.totals and not listed:
            members["writer"].append((Member(writer, writer.layer, ()), torch.tensor(found.totals[name])))
        if parts is None:
            continue
        if listed:
            members["expert"].append((Member(writer, writer.layer, ()), parts.sum()))
        if name in found.heads:
            heads = parts.unflatten(0, (found.heads[name], -1)).sum(dim=-1)
            members["head"].append((Member(writer, writer.layer, tuple(heads.shape)), heads))
        elif writer.role in ("mlp", "expert"):
            members["neuron"].append((Member(writer, writer.layer, tuple(parts.shape)), parts))
            if parts.ndim == 2:
                members["expert"].append((Member(writer, writer.layer, tuple(parts.shape[:1])), parts.sum(dim=-1)))
    return {
        kind: Pool(
            kind,
            tuple(member for member, _ in listed),
            torch.cat([values.double().flatten() for _, values in listed]),
            found.gap,
        )
        for kind, listed in members.items()
        if listed
    }


def ablation(survey: SurveyLike, found: Attribution, chosen: Sequence[Component]) -> Edit:
    """The edit that removes heads, neurons and experts: a mask of 0 over their inputs."""
    scales: dict[str, Tensor] = {}
    for component in chosen:
        assert component.parameter is not None
        columns = found.parts[component.parameter].shape
        scale = scales.setdefault(component.parameter, torch.ones(columns))
        if component.kind == "head":
            scale.view(found.heads[component.parameter], -1)[component.index] = 0.0
        else:
            scale[component.index] = 0.0  # an expert of a bank is a row, one that stands alone everything
    return Edit.mask(survey, scales)
