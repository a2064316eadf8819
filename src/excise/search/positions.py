"""Which token positions lie after the instruction: what all prompts share there is the template, not their subject."""

from __future__ import annotations

from collections.abc import Sequence

from excise.search.task import Task

MOST_AFTER = 16
"""How many tokens after the instruction are looked at, at most."""


def positions_after_instruction(task: Task) -> tuple[str, ...]:
    """The tokens that all rendered prompts end on: those of the template after the instruction; at least the last."""
    prompts = task.splits.fit
    rows = task.model.template.encode(
        [*prompts.target, *prompts.baseline], system=task.behavior.system, thinking=task.behavior.thinking
    )
    shared = 0
    while shared < min(MOST_AFTER, *(len(row) for row in rows)) and len({row[-1 - shared] for row in rows}) == 1:
        shared += 1
    return tuple(f"-{index}" for index in range(1, max(shared, 1) + 1))


def inside_instruction(task: Task, positions: Sequence[str]) -> frozenset[str]:
    """Those of `positions` whose token is the instruction's own, in some prompt at least."""
    after = positions_after_instruction(task)
    return frozenset(each for each in positions if each.startswith("-") and each not in after)
