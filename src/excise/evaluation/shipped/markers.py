"""The behavior's own detectors: fast, exact about where they look, and blind to what is said in other words."""

from __future__ import annotations

from excise.behaviors.measures import Label
from excise.evaluation.labelling import MARKERS, Answers, labeller
from excise.evaluation.labels import label_response


@labeller(MARKERS)
def markers(answers: Answers) -> tuple[Label, ...]:
    """One label per answer, as `label_response` gives it; never unknown."""
    return tuple(label_response(text, answers.behavior) for text in answers.texts)
