"""The scorers and labellers that run when they are asked for by name, one per file; importing one registers it."""

from excise.evaluation.shipped import (
    classifier,
    exact_match,
    judge,
    language,
    length,
    lm_eval,
    margin,
    markers,
    perplexity,
    strata,
)

__all__ = [
    "classifier",
    "exact_match",
    "judge",
    "language",
    "length",
    "lm_eval",
    "margin",
    "markers",
    "perplexity",
    "strata",
]
