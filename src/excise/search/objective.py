"""What an edit does, from cheap to dear: divergence and onset by prefill alone, then generation for what survives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, isfinite
from typing import Any

from excise.behaviors import Behavior, PromptSet
from excise.edit import Edit
from excise.evaluation import Onset, Rate, Reference, Subject, behavior_rate, behavior_rate_each
from excise.evaluation.keys import is_built_in, locate, path_of, scores_of, value_at
from excise.model import EditableModel
from excise.model.population import favourable_count
from excise.model.row_groups import Population
from excise.progress import Progress, silent
from excise.search.axes import Axes
from excise.search.trial import REMOVE, RESERVE, UNLIMITED, Limits, Measured, missing

MOST_KL = 1e6
_SLACK = 0.15
_LITTLE = 0.2


@dataclass(frozen=True)
class BehaviorObjective:
    """Behavior rate on target prompts, divergence from the base model on baseline prompts and on those to keep.

    prompts    of one split
    reference  what the base model does on the prompts whose answers must not change (`PromptSet.unchanged`): an edit
               that takes the behavior away where it must stay is as far from it as one that spoils ordinary answers
    onset      where the base model begins to show the behavior on its target prompts, or where it is strengthened also
               where it would; None: no screening by it
    base_rate  how often the base model shows it there; None where it was not measured
    at_once    how many edits it is best given at a time (`many`)
    reserve    whether rates at `RESERVE` of the strength are measured too, of edits that leave little to be done
    axes       scores that are wanted too, of every edit that is measured in full
    sources    which registered scorer returns each of them that is not built in (`locate` finds out)
    strength   1: the behavior is to be removed; -1: to be strengthened
    """

    model: EditableModel
    behavior: Behavior
    prompts: PromptSet
    reference: Reference
    onset: Onset | None
    base_rate: float | None
    max_tokens: int | None = None
    batch_size: int | None = None
    at_once: int = 1
    reserve: bool = False
    axes: Axes = field(default_factory=Axes)
    sources: Mapping[str, str] = field(default_factory=dict)
    strength: int = REMOVE

    @classmethod
    def measure_base(
        cls,
        model: EditableModel,
        behavior: Behavior,
        prompts: PromptSet,
        *,
        screening: bool = True,
        reserve: bool = False,
        axes: Axes | None = None,
        sources: Mapping[str, str] | None = None,
        strength: int = REMOVE,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        progress: Progress = silent,
    ) -> BehaviorObjective:
        """Measure the base model, which must have no edit live.

        screening  whether trials can be screened by their onset; False saves the base model's responses
        reserve    whether edits are also measured at a part of their strength
        """
        reference = Reference.measure(model, prompts.unchanged, behavior, batch_size=batch_size, progress=progress)
        onset, base_rate = None, None
        if screening:
            base = behavior_rate(
                model,
                prompts.target,
                behavior,
                max_tokens=max_tokens,
                batch_size=batch_size,
                stop_early=True,
                progress=progress,
            )
            base_rate = base.rate.value
            onset = Onset.measure(
                model,
                prompts.target,
                behavior,
                base.responses,
                wherever=strength != REMOVE,
                batch_size=batch_size,
            )
        at_once = favourable_count(model.device)
        return cls(
            model,
            behavior,
            prompts,
            reference,
            onset,
            base_rate,
            max_tokens,
            batch_size,
            at_once,
            reserve,
            axes or Axes(),
            sources or {},
            strength,
        )

    def __call__(self, edit: Edit, limits: Limits = UNLIMITED) -> Measured:
        """Measure an edit; nothing is generated where its KL or its estimated rate exceeds the limits."""
        return self.many([edit], limits)[0]

    def many(self, edits: Sequence[Edit], limits: Limits = UNLIMITED) -> list[Measured]:
        """Measure each edit, in shared batches where that can be; the same as one at a time, to rounding.

        Registered scorers are asked one edit at a time. Raises `ScorerError`.
        """
        found = self.model.measure_each(edits, partial(self._measure, limits))
        if self.reserve:
            found = self._with_reserves(edits, found)
        return [self._scored(edit, each) for edit, each in zip(edits, found, strict=True)]

    def locate(self) -> tuple[dict[str, str], dict[str, float]]:
        """Which registered scorer returns each score of the axes, and what it says of the model without an edit.

        Raises `InputError` for a score that none returns, `ScorerError`.
        """
        return locate(self.axes.keys, self._subject)

    def prefill(self, edit: Edit) -> Measured:
        """Measure an edit without generating: the rate is an estimate, as of a screened trial."""
        return self.prefill_many([edit])[0]

    def prefill_many(self, edits: Sequence[Edit]) -> list[Measured]:
        """`prefill` for each edit, in shared batches where that can be."""
        return self.many(edits, Limits(kl=-1.0, onset=0.0))

    def sample(self, *, targets: int, baselines: int, tokens: int) -> BehaviorObjective:
        """The same on fewer prompts and shorter continuations, for rough comparisons by `prefill`.

        baselines  how many baseline prompts, and how many of those to keep
        """
        whole = self.prompts
        prompts = PromptSet(whole.target[:targets], whole.baseline[:baselines], whole.keep[:baselines])
        onset = self.onset
        if onset is not None:
            kept = [place for place, index in enumerate(onset.prompts) if index < targets]
            onset = replace(
                onset,
                rows=tuple(onset.rows[place] for place in kept),
                prompts=tuple(onset.prompts[place] for place in kept),
                total=len(prompts.target),
            )
        reference = Reference.measure(
            self.model, prompts.unchanged, self.behavior, tokens=tokens, batch_size=self.batch_size
        )
        return replace(self, prompts=prompts, onset=onset, reference=reference)

    def _measure(self, limits: Limits, live: Population) -> list[Measured]:
        """Measure the edits that are live; responses are generated for those that are not given up before."""
        divergences = self.reference.compare_each(self.model, live)
        estimates: list[float | None] = [None] * len(live)
        if self.onset is not None:
            estimated = self.onset.estimated_rate_each if self.strength == REMOVE else self.onset.expected_rate_each
            estimates = list(estimated(self.model, live))
        reasons = [
            self._screen(divergence.sequence.mean, estimate, limits)
            for divergence, estimate in zip(divergences, estimates, strict=True)
        ]
        rates = self._rates(live, [edit for edit, reason in enumerate(reasons) if not reason])
        return [
            Measured(
                rate=rates[edit].value if edit in rates else estimate or 0.0,
                kl_first=_finite(divergence.first.mean),
                kl_sequence=_finite(divergence.sequence.mean),
                prompts=len(self.prompts.target),
                estimate=estimate,
                screened=reason != "",
                reason=reason,
                scores=self._built_in({**divergence.to_json(), **(rates[edit].to_json() if edit in rates else {})}),
                rate_by=self.axes.rate_by,
                damage_by=self.axes.damage_by,
                strength=self.strength,
            )
            for edit, (divergence, estimate, reason) in enumerate(zip(divergences, estimates, reasons, strict=True))
        ]

    @property
    def _subject(self) -> Subject:
        """What scorers are given: as in a report, their reference is of the baseline prompts alone."""
        reference = self.reference.first(len(self.prompts.baseline))
        return Subject(self.model, self.behavior, self.prompts, reference, self.max_tokens, self.batch_size)

    def _built_in(self, values: Mapping[str, Any]) -> dict[str, float]:
        """The scores of the axes as far as they are known; infinite where they are not, or not yet."""
        found = {key: value_at(values, key) if is_built_in(key) else None for key in self.axes.keys}
        return {key: inf if value is None else value for key, value in found.items()}

    def _scored(self, edit: Edit, measured: Measured) -> Measured:
        """With what registered scorers say of the edit; of one that was screened they are not asked."""
        if measured.screened or not self.sources:
            return measured
        with self.model.edited(edit):
            said = scores_of(self.sources, self._subject)
        return replace(measured, scores={**measured.scores, **said})

    def _with_reserves(self, edits: Sequence[Edit], found: Sequence[Measured]) -> list[Measured]:
        """With the rate at `RESERVE` of the strength, of edits that leave little to be done at the whole of it."""
        asked = [index for index, each in enumerate(found) if not each.screened and self._missing(each.rate) <= _LITTLE]
        weaker = self.model.measure_each(
            [RESERVE * edits[index] for index in asked],
            lambda live: list(self._rates(live, range(len(live))).values()),
        )
        reserves = {index: rate.value for index, rate in zip(asked, weaker, strict=True)}
        return [replace(each, reserve=reserves.get(index)) for index, each in enumerate(found)]

    def _screen(self, kl: float, estimate: float | None, limits: Limits) -> str:
        if estimate is None:
            return ""
        if not kl <= limits.kl:  # NaN is above any limit
            return f"sequence KL above {limits.kl:.3g}"
        left, begin = self._missing(estimate), 0.0 if self.base_rate is None else self._missing(self.base_rate)
        if begin and left >= limits.onset * begin:
            return (
                "the behavior is still there at its onset" if self.strength > 0 else "the behavior is not begun either"
            )
        if any(rate + _SLACK <= left and known <= kl for rate, known in limits.measured):
            return "another trial is better in both"
        return ""

    def _missing(self, rate: float) -> float:
        return missing(rate, self.strength)

    def _rates(self, live: Population, edits: Sequence[int]) -> dict[int, Rate]:
        """The rates of some of the edits that are live, by their numbers."""
        if not edits:
            return {}
        results = behavior_rate_each(
            self.model,
            self.prompts.target,
            self.behavior,
            live,
            edits=edits,
            max_tokens=self.max_tokens,
            batch_size=self.batch_size,
            stop_early=not any(path_of(key).startswith("labels.") for key in self.axes.keys),  # labels need the end
        )
        return {edit: result.rate for edit, result in zip(edits, results, strict=True)}


def _finite(kl: float) -> float:
    """A model broken so far that its KL is not a number is as bad as can be."""
    return kl if isfinite(kl) else MOST_KL
