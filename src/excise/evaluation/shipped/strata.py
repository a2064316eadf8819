"""Rate and divergence per stratum: an average hides the category or the language that an edit ruins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import torch

from excise.behaviors import PromptSet
from excise.evaluation.rate import Rate, RateResult, label_responses
from excise.evaluation.registry import Subject
from excise.evaluation.requested import offered
from excise.evaluation.responses import target_responses
from excise.evaluation.statistics import Summary

STRATA = "strata"
BY = ("category", "language")
"""The attributes of prompts that strata are made of."""
UNNAMED = "(none)"


def has_strata(prompts: PromptSet) -> bool:
    """Whether any prompt says what it belongs to."""
    every = (*prompts.target, *prompts.unchanged)
    return any(getattr(prompt, by, None) for prompt in every for by in BY)


@offered(STRATA)
def strata(subject: Subject) -> dict[str, Any]:
    """`category` and `language`: per stratum `rate`, `rate_interval`, `labels`, `count` on target prompts, the same
    as `keep_rate`, … on prompts to keep where they were asked, and `kl_first`, `kl_sequence`, `baseline_count` on
    baseline prompts. Nothing is generated where responses are known already.

    Beside them `worst_rate`, `worst_kl_first`, `worst_kl_sequence` (the largest mean of any stratum). A side without
    prompts of a stratum has NaN there, and so have the worst where no prompt says what it belongs to.
    """
    target, keep = (
        label_responses(responses, subject.behavior, subject.model.template)
        for responses in (target_responses(subject), subject.keep_responses)
    )
    divergence = subject.divergence or subject.reference.compare(subject.model, progress=subject.progress)
    found: dict[str, Any] = {}
    for by in BY:
        groups = _groups(subject.prompts.target, by)
        others = _groups(subject.prompts.baseline, by)
        kept = _groups(subject.prompts.keep if subject.keep_responses else (), by)
        names = sorted({*groups, *others, *kept})
        rows = {
            name: {
                **_rate(target, groups.get(name, ())),
                **({f"keep_{key}": value for key, value in _rate(keep, kept.get(name, ())).items()} if kept else {}),
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


def _rate(found: RateResult, indices: Sequence[int]) -> dict[str, Any]:
    rate = Rate.of([found.labels[index] for index in indices], [found.unfinished[index] for index in indices])
    return {**rate.to_json(), "rate": rate.value if indices else nan, "count": rate.total}


def _divergence(first: Sequence[float], sequence: Sequence[float], indices: Sequence[int]) -> dict[str, Any]:
    def summary(values: Sequence[float]) -> dict[str, float]:
        if not indices:
            return dict.fromkeys(("mean", "median", "p95", "max"), nan)
        return dict(Summary.of(torch.tensor([values[index] for index in indices])).to_json())

    return {"kl_first": summary(first), "kl_sequence": summary(sequence), "baseline_count": len(indices)}


def _worst(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return max(known, default=nan)
