"""The default: edits that fire on target tokens alone, in closed form, then polished by gradients.

    1  how the base model answers on the fit split (`lessons`)
    2  a sweep by prefill says which directions remove the behavior
    3  statistics of what every writer reads, in one pass
    4  the closed form at the best directions of three positions, measured; the best of them goes on
    5  responses without the behavior, from the edits so far
    6  the polish, in phases; what 5 did not get is asked again after the first one
    7  between and around those edits: how far along, and how strongly, for the trials that are left

Every closed form of 4 and every phase of 6 is a trial, measured on the tune split by real generation. A polish that
only suits the prompts it was fitted to loses there, and on the select split, to the closed form it began with; so does
an edit without reserve (`front.choose`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from excise.activations.port_statistics import Exchange
from excise.edit import Edit
from excise.model.weights import differentiates
from excise.search.along import at, propose, ranges
from excise.search.factors import Factors
from excise.search.front import choose, damage
from excise.search.groundwork import Groundwork
from excise.search.methods.registry import Method, register
from excise.search.polish import Phase, Polish, Recipe, Snapshot
from excise.search.task import Task
from excise.search.trial import Parameters, Trial

WEIGHT, FIRM_WEIGHT = 0.3, 3.0
"""β of the closed forms, and of one that is only asked for answers: how much silence on target tokens counts."""

RECIPES: Mapping[str, Recipe] = {
    "quick": Recipe((Phase(0.6, 16, most=48), Phase(0.6, 8))),
    "standard": Recipe((Phase(0.6, 20, most=50), Phase(0.6, 10))),
    "thorough": Recipe((Phase(0.6, 60, most=120), *(Phase(preserve, 40) for preserve in (0.6, 1.0, 2.0, 4.0)))),
}
BEYOND: Mapping[str, int] = {"quick": 3, "standard": 6, "thorough": 18}
"""Trials of 7."""

_DONE = "done"
_CONFIRMING = 9  # trials' worth of time that the confirmation of the front takes, its base model included


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
        self.ground = Groundwork(task)

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
        return len(self.ground.sources) + len(self.recipe.phases)

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """The ranges of the trials' parameters."""
        return {
            "kind": CategoricalDistribution(("closed form", "polish", "between")),
            **ranges(1 + len(self.recipe.phases)),
            "position": CategoricalDistribution(self.ground.space.positions),
            "method": CategoricalDistribution(tuple(self.ground.space.directions)),
            "reach": CategoricalDistribution(("one", "per-layer")),
            "source": FloatDistribution(0.0, float(self.task.model.survey.layers)),
            "preserve": FloatDistribution(0.0, 1e3),
            "step": IntDistribution(0, 10**6),
        }

    def candidates(self) -> Iterator[Candidate]:
        """Every edit worth a trial, with its parameters and the seconds it took to make."""
        ground, began = self.ground, time.monotonic()
        forms = [ground.factors(source, weight=WEIGHT) for source in ground.sources]
        for source, form in zip(ground.sources, forms, strict=True):
            yield _parameters(source, "closed form"), form.edit(), time.monotonic() - began
            began = time.monotonic()
        if not ground.lessons.shown:
            self.task.state("no polish: the base model shows the behavior on none of the fit prompts")
            return
        if not differentiates(self.task.model.hf_model):
            self.task.state("no polish: products with this model's quantised weights have no derivative")
            return
        best = self._best(self.task.study.trials[: len(forms)])
        yield from self._polished(ground.sources[best], forms[best], best)

    def _polished(self, source: Parameters, form: Factors, best: int) -> Iterator[Candidate]:
        """The end of each phase of a polish of a closed form, then what lies between.

        best  the trial of that closed form
        """
        began = time.monotonic()
        firm = self.ground.factors(source, weight=FIRM_WEIGHT)
        learned = self.ground.answers("answers", [form.edit(), firm.edit()])
        path = [form.edit()]
        for snapshot in self._phases(form, learned):
            path.append(snapshot.edit)
            parameters = _parameters(
                source, "polish", preserve=snapshot.preserve, step=snapshot.step, along=len(path) - 1.0
            )
            yield parameters, snapshot.edit, time.monotonic() - began
            began = time.monotonic()
        yield from self._between(path, source, best)

    def _phases(self, begin: Factors, learned: list[Exchange]) -> Iterator[Snapshot]:
        task = self.task
        fitting = self.ground.fitting(self.recipe.rows)
        polish = Polish(
            task.model,
            begin,
            self.ground.lessons,
            learned,
            self.recipe,
            deadlines=None if task.seconds is None else self.clock.deadlines(self.recipe.phases),
            seed=task.seed,
            micro=fitting.rows,
            recompute=fitting.recompute,
            checkpoint=task.study.own_path("polish.pt"),
            progress=task.progress,
        )
        for number, snapshot in enumerate(polish.run()):
            if number == 0:  # by now it answers what no edit before it did
                polish.answers = self.ground.answers("more answers", [snapshot.edit], known=learned)
            yield snapshot

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
            yield _parameters(source, "between", **place), at(path, **place), 0.0
            tried += 1

    def _best(self, trials: Sequence[Trial]) -> int:
        """Which of the closed forms leaves least of the behavior and of the damage, as measured."""
        if self.task.axes.keys:
            return choose([trial.measured for trial in trials], preserve=0.5).index
        shown = self.task.tune.base_rate or 1.0
        scores = [trial.measured.rate / shown + 2 * damage(trial.measured) for trial in trials]
        return scores.index(min(scores))


def _parameters(source: Parameters, kind: str, *, strength: float = 1.0, **numbers: float | int) -> Parameters:
    place = {name: source[name] for name in ("position", "method", "reach", "source")}
    return {"kind": kind, **place, "strength": strength, **numbers}
