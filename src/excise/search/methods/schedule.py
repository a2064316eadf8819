"""Strength schedules, tuned by warm starts, TPE and local steps.

A sweep by prefill says which directions to begin with; trials then tune a compact schedule of strengths over the layers
(`excise.search.space`), proposed as `excise.search.proposer` says and given up early where prefill tells enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from excise.edit import Edit
from excise.search.methods.registry import Method, register
from excise.search.positions import inside_instruction
from excise.search.proposer import TreeProposer
from excise.search.space import Space
from excise.search.study import run_study
from excise.search.sweep import MOST_POSITIONS, sources, sweep
from excise.search.task import Task
from excise.search.trial import Parameters, Trial, missing

_SWEEP_TARGETS, _SWEEP_BASELINES, _SWEEP_TOKENS = 24, 16, 16


@register
class Schedule(Method):
    """Black-box search over strength schedules of one direction."""

    name: ClassVar[str] = "schedule"
    summary: ClassVar[str] = "strength schedules over the layers, tuned by TPE and local steps"
    strengthens: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        """Add trials until there are as many as the task wants."""
        if len(task.study.trials) >= task.wanted:
            return
        everywhere = space_of(task)
        known = begin_with(task, everywhere)
        space = everywhere.at_positions(list(dict.fromkeys(str(each["position"]) for each in known)))
        run_study(
            task.study,
            TreeProposer(space, seed=task.seed, trials=task.wanted, sources=known),
            task.tune,
            edit=space.edit,
            distributions=space.distributions,
            trials=task.wanted,
            progress=task.progress,
        )

    def edit(self, task: Task, trial: Trial) -> Edit:
        """The edit that a trial's parameters stand for."""
        return space_of(task).edit(trial.parameters)


def space_of(task: Task) -> Space:
    """The space of a task: all its directions, and the norm modes that it allows."""
    return Space(task.model.survey, task.directions, norm=task.norm, strength=task.strength)


def begin_with(task: Task, space: Space) -> Sequence[Parameters]:
    """Where to begin: what a sweep by prefill found, or by separability alone where that has nothing to go by."""
    known = task.study.note("sources")
    if known is not None:
        return list(known)
    base_rate = task.tune.base_rate
    if not base_rate or not missing(base_rate, task.strength):
        plain = [space.plain(), *(space.plain(position=position) for position in space.positions)]
        return list({str(each["position"]): each for each in plain}.values())[:MOST_POSITIONS]
    rough = task.tune.sample(targets=_SWEEP_TARGETS, baselines=_SWEEP_BASELINES, tokens=_SWEEP_TOKENS)
    swept = sweep(space, rough.prefill_many, base_rate=base_rate, at_once=rough.at_once, progress=task.progress)
    found = sources(swept, inside=inside_instruction(task, space.positions))
    task.study.remember("sources", [dict(each) for each in found])
    return found
