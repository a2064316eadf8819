"""Measuring: how often the behavior is shown, and what else an edit changes."""

from excise.behaviors.measures import Label
from excise.evaluation import shipped as _shipped  # noqa: F401 - registers what it holds
from excise.evaluation.agreement import Kappa, cohens_kappa
from excise.evaluation.evaluate import Scores, evaluate
from excise.evaluation.keys import KEYS, check_keys
from excise.evaluation.labelling import (
    Answers,
    Labelling,
    Verdicts,
    label_all,
    labeller,
    labeller_with,
    labellers,
    labellers_for,
    labellers_of,
)
from excise.evaluation.labels import LABELS, is_degenerate, label_response
from excise.evaluation.modules import load_scorers
from excise.evaluation.onset import Onset
from excise.evaluation.rate import Rate, RateResult, behavior_rate, behavior_rate_each, behavior_rate_many
from excise.evaluation.reference import Divergence, Reference
from excise.evaluation.registry import Scorer, Subject, scorer, scorers
from excise.evaluation.requested import (
    asking,
    offered,
    offered_with,
    request_each,
    request_scorers,
    score_names,
    scorer_named,
)
from excise.evaluation.responses import answers_in, baseline_responses, target_responses
from excise.evaluation.statistics import Summary, wilson

__all__ = [
    "KEYS",
    "LABELS",
    "Answers",
    "Divergence",
    "Kappa",
    "Label",
    "Labelling",
    "Onset",
    "Rate",
    "RateResult",
    "Reference",
    "Scorer",
    "Scores",
    "Subject",
    "Summary",
    "Verdicts",
    "answers_in",
    "asking",
    "baseline_responses",
    "behavior_rate",
    "behavior_rate_each",
    "behavior_rate_many",
    "check_keys",
    "cohens_kappa",
    "evaluate",
    "is_degenerate",
    "label_all",
    "label_response",
    "labeller",
    "labeller_with",
    "labellers",
    "labellers_for",
    "labellers_of",
    "load_scorers",
    "offered",
    "offered_with",
    "request_each",
    "request_scorers",
    "score_names",
    "scorer",
    "scorer_named",
    "scorers",
    "target_responses",
    "wilson",
]
