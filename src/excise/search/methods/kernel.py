"""A weight kernel over the layers, tuned by TPE alone: the space of Heretic (p-e-w/heretic), made from its public
description (README, documentation, trial logs in issues).

Two components, the attention's output projection and the feed-forward's down projection, each with a kernel: weight
`max_weight` at layer `max_weight_position`, falling linearly to `min_weight` at `min_weight_distance` layers from it,
and 0 beyond. The direction is each layer's own, or one between two layers' for all. As in its later versions,
directions are orthogonal to the baseline mean (Lai 2025) and norms are kept, here in the exact column form. 30 % of the
trials are random (60 of 200 by default), the others multi-objective TPE over (rate, first-token KL) with 128
candidates. There are no warm starts, and every trial is measured in full.

Differences: mixers count as attention and experts as feed-forward, so that every writer but the embeddings is covered;
ranges are set around the values that published trial logs show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from excise.directions import Directions
from excise.edit import Edit, Role, Writer
from excise.search.front import damage, remaining
from excise.search.methods.registry import Method, register
from excise.search.proposer import frozen, quiet, without_scale
from excise.search.task import Task
from excise.search.trial import Parameters, Trial

_COMPONENTS: Mapping[Role, str] = {"attention": "attention", "mixer": "attention", "mlp": "mlp", "expert": "mlp"}
_RANDOM_SHARE = 0.3
_CANDIDATES = 128


@register
class Kernel(Method):
    """Black-box search over a triangular weight kernel per component."""

    name: ClassVar[str] = "kernel"
    summary: ClassVar[str] = "a triangular weight kernel over the layers per component, tuned by TPE alone"

    def run(self, task: Task) -> None:
        """Add trials until there are as many as the task wants."""
        distributions = kernel_space(task)
        for index in range(len(task.study.trials), task.wanted):
            task.progress("search", index, task.wanted, "trials")
            parameters = propose(task.study.trials, distributions, seed=task.seed, trials=task.wanted)
            task.add_trial(parameters, kernel_edit(task, parameters), distributions)
        task.progress("search", task.wanted, task.wanted, "trials")

    def edit(self, task: Task, trial: Trial) -> Edit:
        """The edit that a trial's parameters stand for."""
        return kernel_edit(task, trial.parameters)


def kernel_space(task: Task) -> dict[str, BaseDistribution]:
    """The parameters and their ranges. `min_weight` is a share of `max_weight`, so that its range is fixed."""
    last = task.model.survey.layers - 1.0
    found: dict[str, BaseDistribution] = {
        "direction_scope": CategoricalDistribution(("global", "per layer")),
        "direction_index": FloatDistribution(0.4 * last, 0.9 * last),
    }
    for component in dict.fromkeys(_COMPONENTS[w.role] for w in task.model.survey.writers if w.role != "embedding"):
        found[f"{component}.max_weight"] = FloatDistribution(0.8, 1.5)
        found[f"{component}.max_weight_position"] = FloatDistribution(0.6 * last, last)
        found[f"{component}.min_weight"] = FloatDistribution(0.0, 1.0)
        found[f"{component}.min_weight_distance"] = FloatDistribution(1.0, max(1.0, 0.6 * last))
    return found


def kernel_weight(layer: int, parameters: Parameters, component: str) -> float:
    """The weight of one layer of a component."""
    peak = float(parameters[f"{component}.max_weight"])
    distance = abs(layer - float(parameters[f"{component}.max_weight_position"]))
    reach = float(parameters[f"{component}.min_weight_distance"])
    if distance > reach:
        return 0.0
    lowest = peak * float(parameters[f"{component}.min_weight"])
    return peak + (lowest - peak) * distance / reach


def kernel_edit(task: Task, parameters: Parameters) -> Edit:
    """The edit that parameters stand for."""
    directions, position = _directions(task)

    def weight(writer: Writer) -> float:
        return kernel_weight(writer.layer, parameters, _COMPONENTS[writer.role])

    norm = task.norm or "column"
    if parameters["direction_scope"] == "per layer":
        return Edit.project(task.model.survey, directions.per_layer(position), weight, norm)
    one = directions.vector(position, float(parameters["direction_index"]))
    return Edit.project(task.model.survey, one, weight, norm)


def propose(
    history: Sequence[Trial], distributions: Mapping[str, BaseDistribution], *, seed: int, trials: int
) -> dict[str, float | str]:
    """The parameters of trial number `len(history)` of `trials`; the same history always gives the same ones."""
    sampler = optuna.samplers.TPESampler(
        seed=(seed * 1_000_003 + len(history)) % 2**32,
        multivariate=True,
        n_startup_trials=round(_RANDOM_SHARE * trials),
        n_ei_candidates=_CANDIDATES,
    )
    with quiet():
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        study.add_trials(_told(history, distributions))
        return dict(study.ask(dict(distributions)).params)


def _told(history: Sequence[Trial], distributions: Mapping[str, BaseDistribution]) -> list[FrozenTrial]:
    found = [trial.measured for trial in history]
    pairs = [(remaining(each), each.kl_first if each.damage_by is None else damage(each)) for each in found]
    values = without_scale(pairs, history)
    return [frozen(trial, distributions, each) for trial, each in zip(history, values, strict=True)]


def _directions(task: Task) -> tuple[Directions, int]:
    """Projected directions, and the position: the last prompt token, or the best one where there is none of it."""
    directions = task.directions.with_method("projected")
    return directions, directions.positions.index("-1") if "-1" in directions.positions else directions.best[0]
