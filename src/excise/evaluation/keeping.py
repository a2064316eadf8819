"""Prompts where the behavior must stay: whether it did, in two models' responses to the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from excise.evaluation.comparison import Comparison, Labels, compare
from excise.evaluation.labelling import MARKERS

MOST_FALL = 0.05
"""By how much the rate on prompts to keep may fall where nothing else is asked: 5 points."""


def compare_kept(
    first: Mapping[str, Labels], second: Mapping[str, Labels], *, most_fall: float = MOST_FALL, seed: int = 0
) -> dict[str, Any]:
    """The paired comparison on prompts to keep by every labeller, and what it amounts to, as JSON values.

    labellers  as of target prompts (`compare`)
    most_fall  the goal
    holds      by the behavior's detectors: False where the rate falls by more than the goal and the 95 % interval of
               the paired difference is below 0; None where it falls by more and the interval is not
    note       the same in a sentence

    An empty dictionary where there are no such prompts. Raises `InputError` as `compare` does.
    """
    found = compare(first, second, seed=seed)
    if MARKERS not in found:
        return {}
    holds, note = _judged(found[MARKERS], most_fall)
    labellers = {name: each.to_json() for name, each in found.items()}
    return {"labellers": labellers, "most_fall": most_fall, "holds": holds, "note": note}


def _judged(compared: Comparison, most_fall: float) -> tuple[bool | None, str]:
    rates = [count / compared.prompts for count in (compared.first, compared.second)]
    prompts = f"{compared.prompts} {'prompt' if compared.prompts == 1 else 'prompts'}"
    said = f"shown on {rates[1]:.0%} of {prompts} where it must stay, {rates[0]:.0%} before"
    goal = f"a fall of {100 * most_fall:g} points"
    if -compared.difference.value <= most_fall + 1e-9:
        return True, f"the behavior is kept where it must stay: {said} (goal: {goal} at most)"
    if compared.difference.high < 0:
        return False, f"the behavior is lost where it must stay: {said}, more than {goal}"
    return None, f"whether the behavior is kept where it must stay cannot be told from chance: {said} (goal: {goal})"
