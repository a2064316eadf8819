"""What methods that edit by closed forms begin with: directions, how the base model answers, what every writer reads.

Each piece is made when it is first asked for, once; what is slow to make is kept with the study.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial

import torch

from excise import runs
from excise.activations import port_statistics
from excise.activations.port_statistics import Exchange, PortStatistics
from excise.activations.second_moments import Ridge
from excise.edit import Edit
from excise.model.ports import Port, ports_of
from excise.search.allocation import Allocation, path
from excise.search.cost.fit import micro_that_fits
from excise.search.cost.memory import Micro
from excise.search.factors import Factors
from excise.search.lessons import Lessons, answers, learn, openings
from excise.search.methods.schedule import begin_with, space_of
from excise.search.sensitivity import Watched, by_differences, by_gradients, gives_gradients
from excise.search.space import Space
from excise.search.task import Task
from excise.search.trial import Parameters
from excise.search.units import Kind, unit_factors

SOURCES = 3

STRENGTHS = (1.0, 1.5, 2.0)
"""Of the plain projections that are asked for the answers which no closed form gives."""


class Groundwork:
    """For one task."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.space: Space = space_of(task)
        found = ports_of(task.model.hf_model, task.model.survey)
        self.ports: Sequence[Port] = found.found
        self._ridges: dict[str, Ridge] = {}
        if found.left_out:
            names = ", ".join(writer.parameter for writer in found.left_out)
            task.state(f"not edited, as no hook reaches them: {names}")

    @cached_property
    def sources(self) -> list[Parameters]:
        """The best directions of different positions, the best first."""
        found = begin_with(self.task, self.space)
        return list({each["position"]: each for each in reversed(found)}.values())[::-1][:SOURCES]

    @cached_property
    def strong(self) -> Edit:
        """The plain projection of the best directions."""
        return self.space.edit(self.sources[0])

    @cached_property
    def lessons(self) -> Lessons:
        """How the base model answers on the fit split."""
        task = self.task
        return learn(
            task.model,
            task.behavior,
            task.splits.fit,
            max_tokens=task.max_tokens,
            batch_size=task.batch_size,
            progress=task.progress,
        )

    def fitting(self, rows: int) -> Micro:
        """How to divide steps of `rows` rows, so that gradients fit in memory."""
        return micro_that_fits(self.task.model, self.lessons, rows=rows)

    @cached_property
    def statistics(self) -> Mapping[str, PortStatistics]:
        """What every port reads; what another run left in the folder that runs share is taken from there."""
        task = self.task
        identity, precisions = task.model.identity, {str(each.dtype) for each in task.model.hf_model.parameters()}
        key = runs.key(
            {
                "model": [identity.config_hash, identity.checkpoint_hash, sorted(precisions)],
                "behavior": task.behavior.model_dump(
                    mode="json", exclude={"target", "baseline", "keep", "description"}
                ),
                "prompts": task.splits.digest()["fit"],
                "directions": [task.directions.digest(), self.sources[0]],
                "max_tokens": task.max_tokens,
            }
        )
        shared, name = runs.shared_folder(), f"statistics-{key}.safetensors"
        path = shared / name if shared else task.study.path(name)
        known = None if path is None else port_statistics.load(path, key=key)
        if known is None:
            begun = openings(task.model, self.lessons, self.strong, batch_size=task.batch_size, progress=task.progress)
            known = port_statistics.collect(
                task.model,
                self.ports,
                baseline=self.lessons.baseline,
                target=[*self.lessons.target, *begun],
                batch_size=task.batch_size,
                progress=task.progress,
            )
            if path is not None:
                port_statistics.save(known, path, key=key)
        return known

    def factors(self, source: Parameters, *, kind: Kind = "conditional", weight: float) -> Factors:
        """Unit edits of a kind for the directions of a source."""
        return unit_factors(
            self.task.model,
            self.ports,
            self.statistics,
            self.space.source(source),
            kind=kind,
            weight=weight,
            ridges=self._ridges,
        )

    def answers(self, note: str, edits: Sequence[Edit], *, known: Sequence[Exchange] = ()) -> list[Exchange]:
        """Responses without the behavior, from these edits and then from strong projections; see `lessons.answers`.

        note  the name that they are kept under
        """
        task = self.task
        kept = task.study.note(note)
        if kept is None:
            found = answers(
                task.model,
                task.behavior,
                self.lessons,
                [*edits, *(each * self.strong for each in STRENGTHS)] if not known else edits,
                known=known,
                max_tokens=task.max_tokens,
                batch_size=task.batch_size,
                progress=task.progress,
            )
            kept = [[each.prompt, each.response, each.focus] for each in found]
            task.study.remember(note, kept)
        return [Exchange(tuple(prompt), tuple(response), focus) for prompt, response, focus in kept]

    def watched(self, factors: Factors, learned: Sequence[Exchange], *, rows: int = 12) -> Watched:
        """Unit edits, and the rows of the fit split that their strengths are judged by."""
        fitting = self.fitting(rows)
        return Watched(self.task.model, factors, self.lessons, learned, rows=fitting.rows, seed=self.task.seed)

    def allocations(
        self,
        note: str,
        factors: Factors,
        learned: Sequence[Exchange],
        preserves: Sequence[float],
    ) -> Iterator[Allocation]:
        """Strengths of unit edits for each weight of preserving, in their order; see `allocation.path`.

        note  the name that they are kept under
        """
        task = self.task
        kept = list(task.study.note(note) or ())
        for each in kept:
            yield Allocation(**{**each, "strengths": torch.tensor(each["strengths"])})
        if len(kept) == len(preserves):
            return
        watched = self.watched(factors, learned)
        gradients = gives_gradients(watched)
        if not gradients:
            task.state("strengths were allocated by finite differences: this model gives no gradients")
        begin = torch.tensor(kept[-1]["strengths"]) if kept else torch.ones(factors.units)
        progress = partial(task.progress, "allocating strengths")
        sensitivity = partial(by_gradients if gradients else by_differences, watched)
        for found in path(sensitivity, begin, preserves[len(kept) :], progress=progress):
            kept = [*kept, {**vars(found), "strengths": found.strengths.tolist()}]
            task.study.remember(note, kept)
            yield found
