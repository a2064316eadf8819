"""Rate and divergence per stratum: an average hides the category or the language that an edit ruins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import torch

from excise.evaluation.labels import label_response
from excise.evaluation.rate import Rate
from excise.evaluation.registry import Subject
from excise.evaluation.requested import offered
from excise.evaluation.responses import answers_in, target_responses
from excise.evaluation.statistics import Summary

BY = ("category", "language")
"""The attributes of prompts that strata are made of."""
UNNAMED = "(none)"


@offered("strata")
def strata(subject: Subject) -> dict[str, Any]:
    """`category` and `language`: per stratum `rate`, `rate_interval`, `labels`, `count` on target prompts, and
    `kl_first`, `kl_sequence`, `baseline_count` on baseline prompts; `worst_rate`, `worst_kl_first`, `worst_kl_sequence`
    (the largest mean of any stratum) beside them. A side without prompts of a stratum has NaN there, and so have the
    worst where no prompt says what it belongs to.
    """
    answers = answers_in(target_responses(subject), subject.model.template, subject.behavior)
    labels = [label_response(text, subject.behavior) for text in answers]
    divergence = subject.divergence or subject.reference.compare(subject.model, progress=subject.progress)
    found: dict[str, Any] = {}
    for by in BY:
        groups = _groups(subject.prompts.target, by)
        others = _groups(subject.prompts.baseline, by)
        names = sorted({*groups, *others})
        rows = {
            name: {
                **_rate([labels[index] for index in groups.get(name, ())]),
                **_divergence(divergence.first_each, divergence.sequence_each, others.get(name, ())),
            }
            for name in names
        }
        found[by] = rows if names != [UNNAMED] else {}
    named = [row for by in BY for row in found[by].values()]
    return {
        **found,
        "worst_rate": _worst([row["rate"] for row in named]),
        "worst_kl_first": _worst([row["kl_first"]["mean"] for row in named]),
        "worst_kl_sequence": _worst([row["kl_sequence"]["mean"] for row in named]),
    }


def _groups(prompts: Sequence[str], by: str) -> Mapping[str, list[int]]:
    """The indices of the prompts in each stratum."""
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(str(getattr(prompt, by, None) or UNNAMED), []).append(index)
    return groups


def _rate(labels: Sequence[Any]) -> dict[str, Any]:
    rate = Rate.of(labels)
    return {**rate.to_json(), "rate": rate.value if labels else nan, "count": rate.total}


def _divergence(first: Sequence[float], sequence: Sequence[float], indices: Sequence[int]) -> dict[str, Any]:
    def summary(values: Sequence[float]) -> dict[str, float]:
        if not indices:
            return dict.fromkeys(("mean", "median", "p95", "max"), nan)
        return dict(Summary.of(torch.tensor([values[index] for index in indices])).to_json())

    return {"kl_first": summary(first), "kl_sequence": summary(sequence), "baseline_count": len(indices)}


def _worst(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return max(known, default=nan)
