"""The default: edits that fire on target tokens alone, in closed form, then polished by gradients.

    1  how the base model answers on the fit split (`lessons`)
    2  a sweep by prefill says which directions remove the behavior
    3  statistics of what every writer reads, in one pass
    4  the closed form at the best directions of three positions, measured; the best of them goes on
    5  responses without the behavior, from the edits so far
    6  the polish: phases with more and more weight on preserving; what 5 did not get is asked again after the first one

    7  between and beyond those edits: how far along, and how strongly, for the trials that are left

Every closed form of 4 and every phase of 6 is a trial, measured on the tune split by real generation. A polish that
only suits the prompts it was fitted to loses there, and on the select split, to the closed form it began with.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from excise import runs
from excise.activations import port_statistics
from excise.activations.port_statistics import Exchange, PortStatistics
from excise.activations.second_moments import Ridge
from excise.edit import Edit
from excise.model.ports import Port, ports_of
from excise.search.along import at, propose, ranges
from excise.search.closed_form import conditional_factors
from excise.search.cost.fit import micro_that_fits
from excise.search.factors import Factors
from excise.search.front import choose, damage
from excise.search.lessons import Lessons, answers, learn, openings
from excise.search.methods.registry import Method, register
from excise.search.methods.schedule import begin_with, space_of
from excise.search.polish import Phase, Polish, Recipe
from excise.search.space import Space
from excise.search.task import Task
from excise.search.trial import Parameters, Trial

WEIGHT, FIRM_WEIGHT = 0.3, 3.0
"""β of the closed forms: how much silence on target tokens counts against silence on baseline ones."""

STRENGTHS = (1.0, 1.5, 2.0)
"""Of the plain projections that are asked for the answers which no closed form gives."""

SOURCES = 3
RECIPES: Mapping[str, Recipe] = {
    "quick": Recipe((Phase(0.3, 16, most=48), Phase(1.0, 8), Phase(3.0, 8))),
    "standard": Recipe((Phase(0.3, 30, most=60), Phase(0.6, 15), Phase(1.5, 15), Phase(4.0, 15))),
    "thorough": Recipe((Phase(0.2, 80, most=160), *(Phase(preserve, 40) for preserve in (0.5, 1.0, 2.0, 4.0, 8.0)))),
}
BEYOND: Mapping[str, int] = {"quick": 3, "standard": 6, "thorough": 18}
"""Trials of 7."""

_DONE = "done"
_CONFIRMING = 8  # trials' worth of time that the confirmation of the front takes, its base model included


@register
class PolishMethod(Method):
    """Closed form, then gradients."""

    name: ClassVar[str] = "polish"
    summary: ClassVar[str] = "edits that fire on target tokens alone: in closed form, then polished by gradients"

    def run(self, task: Task) -> None:
        """Add a trial for each closed form and each phase of the polish, and then between them."""
        if task.study.note(_DONE):
            return
        search = _Search(task)
        for index, (parameters, edit, seconds) in enumerate(search.candidates()):
            if index >= len(task.study.trials):
                trial = task.add_trial(parameters, edit, search.distributions, keep=True, making=seconds)
                search.clock.measuring = trial.seconds - seconds
                task.progress("trials", index + 1, max(index + 1, search.wanted), "trials")
            if search.is_over(index + 1):
                break
        task.study.remember(_DONE, True)

    def edit(self, task: Task, trial: Trial) -> Edit:
        """The edit that was kept with the trial."""
        return task.study.edit(trial.index)


Candidate = tuple[Parameters, Edit, float]


class _Clock:
    """What is left of the time a search may take.

    measuring  seconds that the last trial took to measure
    """

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        self.measuring = 0.0

    def left(self, trials: int) -> float:
        """Seconds left beside those that so many trials, and the confirmation of the front, will take."""
        return self.ends - time.monotonic() - self.measuring * (trials + _CONFIRMING)

    def deadlines(self, phases: Sequence[Phase]) -> list[float]:
        """When each phase has to end, shared out by their steps."""
        begin, left = time.monotonic(), max(self.left(len(phases)), 0.0)
        steps = [phase.steps for phase in phases]
        return [
            begin + left * sum(steps[: number + 1]) / sum(steps) + number * self.measuring
            for number in range(len(phases))
        ]


class _Search:
    """One search under way; what is slow is made when it is first needed, once."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.recipe = RECIPES[task.budget]
        self.clock = _Clock(task.seconds or 0.0)
        self.space: Space = space_of(task)
        found = ports_of(task.model.hf_model, task.model.survey)
        self.ports: Sequence[Port] = found.found
        self.ridges: dict[str, Ridge] = {}
        if found.left_out:
            names = ", ".join(writer.parameter for writer in found.left_out)
            task.state(f"not edited, as no hook reaches them: {names}")

    @property
    def wanted(self) -> int:
        """The number of trials: those asked for, or as many as the budget has."""
        return self.made + BEYOND[self.task.budget] if self.task.trials is None else self.task.trials

    def is_over(self, trials: int) -> bool:
        """Whether that many trials are all there will be."""
        if self.task.seconds is not None and self.task.trials is None:
            return trials >= self.made and self.clock.left(1) <= 0
        return trials == self.wanted

    @property
    def made(self) -> int:
        """How many trials are closed forms or ends of phases."""
        return len(self.sources) + 1 + len(self.recipe.phases)

    @cached_property
    def sources(self) -> list[Parameters]:
        """The best directions of different positions."""
        found = begin_with(self.task, self.space)
        return list({each["position"]: each for each in reversed(found)}.values())[::-1][:SOURCES]

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """The ranges of the trials' parameters."""
        return {
            "kind": CategoricalDistribution(("closed form", "polish", "between")),
            **ranges(len(self.recipe.phases) + 1),
            "position": CategoricalDistribution(self.space.positions),
            "method": CategoricalDistribution(tuple(self.space.directions)),
            "reach": CategoricalDistribution(("one", "per-layer")),
            "source": FloatDistribution(0.0, float(self.task.model.survey.layers)),
            "weight": FloatDistribution(0.0, 1e3),
            "preserve": FloatDistribution(0.0, 1e3),
            "step": IntDistribution(0, 10**6),
        }

    def candidates(self) -> Iterator[Candidate]:
        """Every edit worth a trial, with its parameters and the seconds it took to make."""
        task = self.task
        began = time.monotonic()
        lessons = learn(
            task.model,
            task.behavior,
            task.splits.fit,
            max_tokens=task.max_tokens,
            batch_size=task.batch_size,
            progress=task.progress,
        )
        strong = self.space.edit(self.sources[0])
        statistics = self._statistics(lessons, strong)
        forms = [self._closed_form(source, statistics, WEIGHT).edit() for source in self.sources]
        for source, edit in zip(self.sources, forms, strict=True):
            yield self._parameters(source, "closed form", weight=WEIGHT), edit, time.monotonic() - began
            began = time.monotonic()
        best = self._best(task.study.trials[: len(forms)])
        source, form = self.sources[best], forms[best]
        firm = self._closed_form(source, statistics, FIRM_WEIGHT).edit()
        yield self._parameters(source, "closed form", weight=FIRM_WEIGHT), firm, time.monotonic() - began
        if lessons.shown:
            yield from self._polished(lessons, statistics, best, [form, firm, *(each * strong for each in STRENGTHS)])
        else:
            task.state("no polish: the base model shows the behavior on none of the fit prompts")

    def _polished(
        self, lessons: Lessons, statistics: Mapping[str, PortStatistics], best: int, known: Sequence[Edit]
    ) -> Iterator[Candidate]:
        """The end of each phase of a polish, then what lies between them.

        best   the source whose closed form it begins with
        known  edits that are asked for answers, that closed form first
        """
        task, source = self.task, self.sources[best]
        began = time.monotonic()
        learned = self._answers("answers", lessons, known)
        fitting = micro_that_fits(task.model, lessons, rows=self.recipe.rows)
        polish = Polish(
            task.model,
            self._closed_form(source, statistics, WEIGHT),
            lessons,
            learned,
            self.recipe,
            deadlines=None if task.seconds is None else self.clock.deadlines(self.recipe.phases),
            seed=task.seed,
            micro=fitting.rows,
            recompute=fitting.recompute,
            checkpoint=task.study.own_path("polish.pt"),
            progress=task.progress,
        )
        path = [known[0]]
        for number, snapshot in enumerate(polish.run()):
            if number == 0:  # by now it answers what no edit before it did
                polish.answers = self._answers("more answers", lessons, [snapshot.edit], known=learned)
            path.append(snapshot.edit)
            parameters = self._parameters(
                source,
                "polish",
                weight=WEIGHT,
                preserve=snapshot.preserve,
                step=snapshot.step,
                along=number + 1.0,
            )
            yield parameters, snapshot.edit, time.monotonic() - began
            began = time.monotonic()
        yield from self._between(path, source, best)

    def _between(self, path: Sequence[Edit], source: Parameters, begin: int) -> Iterator[Candidate]:
        """Edits between and beyond those of the path, for as long as they are asked for; trial `begin` is its first."""
        tried = 0
        while True:
            history = [
                Trial(trial.index, {"along": 0.0, "strength": 1.0} | dict(trial.parameters), trial.measured, 0.0)
                for trial in self.task.study.trials[: self.made + tried]
                if "along" in trial.parameters or trial.index == begin
            ]
            place = propose(history, tried=tried, length=len(path), seed=self.task.seed)
            parameters = self._parameters(source, "between", weight=WEIGHT, **place)
            yield parameters, at(path, **place), 0.0
            tried += 1

    def _statistics(self, lessons: Lessons, strong: Edit) -> dict[str, PortStatistics]:
        task = self.task
        key = runs.key(
            {
                "model": [task.model.identity.config_hash, task.model.identity.checkpoint_hash],
                "prompts": task.splits.digest()["fit"],
                "directions": task.directions.digest(),
                "max_tokens": task.max_tokens,
            }
        )
        path = task.study.path(f"statistics-{key}.safetensors")
        known = None if path is None else port_statistics.load(path, key=key)
        if known is None:
            begun = openings(task.model, lessons, strong, batch_size=task.batch_size, progress=task.progress)
            known = port_statistics.collect(
                task.model,
                self.ports,
                baseline=lessons.baseline,
                target=[*lessons.target, *begun],
                batch_size=task.batch_size,
                progress=task.progress,
            )
            if path is not None:
                port_statistics.save(known, path, key=key)
        return known

    def _best(self, trials: Sequence[Trial]) -> int:
        """Which of the closed forms leaves least of the behavior and of the damage, as measured."""
        if self.task.axes.keys:
            return choose([trial.measured for trial in trials], preserve=0.5).index
        shown = self.task.tune.base_rate or 1.0
        scores = [trial.measured.rate / shown + 2 * damage(trial.measured) for trial in trials]
        return scores.index(min(scores))

    def _closed_form(self, source: Parameters, statistics: Mapping[str, PortStatistics], weight: float) -> Factors:
        return conditional_factors(
            self.task.model, self.ports, statistics, self.space.source(source), weight=weight, ridges=self.ridges
        )

    def _answers(
        self, note: str, lessons: Lessons, edits: Sequence[Edit], *, known: Sequence[Exchange] = ()
    ) -> list[Exchange]:
        task = self.task
        kept = task.study.note(note)
        if kept is None:
            found = answers(
                task.model,
                task.behavior,
                lessons,
                edits,
                known=known,
                max_tokens=task.max_tokens,
                batch_size=task.batch_size,
                progress=task.progress,
            )
            kept = [[each.prompt, each.response, each.focus] for each in found]
            task.study.remember(note, kept)
        return [Exchange(tuple(prompt), tuple(response), focus) for prompt, response, focus in kept]

    def _parameters(
        self, source: Parameters, kind: str, *, weight: float, strength: float = 1.0, **numbers: float | int
    ) -> Parameters:
        place = {name: source[name] for name in ("position", "method", "reach", "source")}
        return {"kind": kind, **place, "weight": weight, "strength": strength, **numbers}
