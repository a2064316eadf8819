"""Unit edits at every writer, their strengths by quadratic programs: nothing is trained and nothing searched blindly.

For each kind of unit edit (`excise.search.units`), along the best directions that a sweep by prefill finds: all at
strength 1, then the strengths that `excise.search.allocation` gives for each weight of preserving, from thorough to
light. Works wherever the model runs: where a backend gives no gradients, by finite differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, get_args

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from excise.edit import Edit
from excise.search.factors import Factors
from excise.search.groundwork import Groundwork
from excise.search.methods.registry import Method, register
from excise.search.sensitivity import gives_gradients
from excise.search.task import Task
from excise.search.trial import Parameters, Trial
from excise.search.units import Kind, fisher_weighted, output_fisher

WEIGHT = 0.3
"""β of the conditional unit edits."""

UNITS: tuple[tuple[Kind, bool], ...] = (
    ("conditional", False),
    ("projection", False),
    ("conditional", True),
    ("oblique", False),
)
"""Kinds of unit edits, and whether their left factors are weighted by the Fisher matrix; the best known first."""

KINDS: Mapping[str, int] = {"quick": 1, "standard": 2, "thorough": len(UNITS)}
PRESERVES: Mapping[str, tuple[float, ...]] = {
    "quick": (0.3, 1.0, 3.0),
    "standard": (0.1, 0.3, 1.0, 3.0, 10.0),
    "thorough": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
}
"""How many of those kinds, and which weights of preserving, by the budget."""


@register
class AllocationMethod(Method):
    """One trial per kind at strength 1, then one per weight of preserving."""

    name: ClassVar[str] = "allocation"
    summary: ClassVar[str] = "unit edits at every writer, their strengths by quadratic programs"

    def run(self, task: Task) -> None:
        """Add the trials in their order, as many as there are or as are asked for."""
        kinds, preserves = UNITS[: KINDS[task.budget]], PRESERVES[task.budget]
        planned = len(kinds) * (1 + len(preserves))
        wanted = planned if task.trials is None else min(task.trials, planned)
        if len(task.study.trials) >= wanted:
            return
        ground = Groundwork(task)
        for index, (parameters, edit) in enumerate(_candidates(ground, kinds, preserves)):
            if index >= len(task.study.trials):
                task.progress("search", index, wanted, "trials")
                task.add_trial(parameters, edit, _distributions(ground), keep=True)
            if index + 1 == wanted:
                break
        task.progress("search", wanted, wanted, "trials")

    def edit(self, task: Task, trial: Trial) -> Edit:
        """The edit that was kept with the trial."""
        return task.study.edit(trial.index)


def _candidates(
    ground: Groundwork, kinds: tuple[tuple[Kind, bool], ...], preserves: tuple[float, ...]
) -> Iterator[tuple[Parameters, Edit]]:
    source = ground.sources[0]
    place = {name: source[name] for name in ("position", "method", "reach", "source")}
    for kind, weighted in kinds:
        factors = _factors(ground, kind, weighted)
        known = {**place, "units": kind, "fisher": int(weighted)}
        yield {**known, "preserve": 0.0, "alive": factors.units}, factors.edit()
        if not ground.lessons.shown:
            ground.task.state(
                "no strengths were allocated: the base model shows the behavior on none of the fit prompts"
            )
            return
        learned = ground.answers("answers", [ground.factors(source, weight=WEIGHT).edit()])
        for found in ground.allocations(f"{kind} {weighted}", factors, learned, preserves):
            allocated = factors.scaled(found.strengths)
            yield {**known, "preserve": found.preserve, "alive": allocated.units}, allocated.edit()


def _factors(ground: Groundwork, kind: Kind, weighted: bool) -> Factors:
    factors = ground.factors(ground.sources[0], kind=kind, weight=WEIGHT)
    if not weighted:
        return factors
    watched = ground.watched(factors, ())
    if not gives_gradients(watched):
        ground.task.state("left factors are not weighted by the Fisher matrix: this model gives no gradients")
        return factors
    return fisher_weighted(factors, output_fisher(watched))


def _distributions(ground: Groundwork) -> Mapping[str, BaseDistribution]:
    return {
        "units": CategoricalDistribution(get_args(Kind)),
        "fisher": IntDistribution(0, 1),
        "alive": IntDistribution(0, 10**6),
        "preserve": FloatDistribution(0.0, 1e3),
        "position": CategoricalDistribution(ground.space.positions),
        "method": CategoricalDistribution(tuple(ground.space.directions)),
        "reach": CategoricalDistribution(("one", "per-layer")),
        "source": FloatDistribution(0.0, float(ground.task.model.survey.layers)),
    }
