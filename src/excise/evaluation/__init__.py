"""Measuring: how often the behavior is shown, and what else an edit changes."""

from excise.behaviors.measures import Label
from excise.evaluation.evaluate import Scores, evaluate
from excise.evaluation.keys import KEYS, check_keys
from excise.evaluation.labels import LABELS, is_degenerate, label_response
from excise.evaluation.modules import load_scorers
from excise.evaluation.onset import Onset
from excise.evaluation.rate import Rate, RateResult, behavior_rate, behavior_rate_each, behavior_rate_many
from excise.evaluation.reference import Divergence, Reference
from excise.evaluation.registry import Scorer, Subject, scorer, scorers
from excise.evaluation.statistics import Summary, wilson

__all__ = [
    "KEYS",
    "LABELS",
    "Divergence",
    "Label",
    "Onset",
    "Rate",
    "RateResult",
    "Reference",
    "Scorer",
    "Scores",
    "Subject",
    "Summary",
    "behavior_rate",
    "behavior_rate_each",
    "behavior_rate_many",
    "check_keys",
    "evaluate",
    "is_degenerate",
    "label_response",
    "load_scorers",
    "scorer",
    "scorers",
    "wilson",
]
