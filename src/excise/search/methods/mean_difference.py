"""The classic: one difference of means, projected out of every writer at full strength.

The direction of the place that separates held-out prompts best is tried first (`excise.directions.select`), then those
of the same position at the other layers, by decreasing effect size; never one of the last fifth of the layers.
"""

from __future__ import annotations

from typing import ClassVar

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from excise.directions import Directions, candidate_layers
from excise.edit import Edit
from excise.search.methods.registry import Method, register
from excise.search.task import Task
from excise.search.trial import Trial


@register
class MeanDifference(Method):
    """One trial per layer the direction may be taken from, as many as the task wants."""

    name: ClassVar[str] = "mean-difference"
    summary: ClassVar[str] = "one difference of means out of every writer at full strength, layer by layer"

    def run(self, task: Task) -> None:
        """Add one trial per layer."""
        directions = _directions(task)
        position = directions.positions[directions.best[0]]
        layers = ranked_layers(directions)[: task.wanted]
        distributions: dict[str, BaseDistribution] = {
            "position": CategoricalDistribution(directions.positions),
            "layer": FloatDistribution(0.0, directions.layers - 1.0, step=1.0),
        }
        for index in range(len(task.study.trials), len(layers)):
            task.progress("search", index, len(layers), "trials")
            parameters: dict[str, float | str] = {"position": position, "layer": float(layers[index])}
            task.add_trial(parameters, _edit(task, layers[index]), distributions)
        task.progress("search", len(layers), len(layers), "trials")

    def edit(self, task: Task, trial: Trial) -> Edit:
        """The direction of the trial's layer, out of every writer."""
        return _edit(task, int(trial.parameters["layer"]))


def ranked_layers(directions: Directions) -> list[int]:
    """The layers in the order they are tried: the selected one, then by decreasing effect size at its position."""
    position, best = directions.best
    effect, length = directions.separability.effect[position], directions.vectors[position].norm(dim=-1)
    others = [
        layer for layer in range(candidate_layers(directions.layers)) if layer != best and float(length[layer]) > 0.5
    ]
    return [best, *sorted(others, key=lambda layer: -float(effect[layer]))]


def _directions(task: Task) -> Directions:
    return task.directions.with_method("mean-difference")


def _edit(task: Task, layer: int) -> Edit:
    directions = _directions(task)
    return Edit.project(task.model.survey, directions.vectors[directions.best[0], layer], norm=task.norm or "none")
