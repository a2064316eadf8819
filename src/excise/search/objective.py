"""What an edit does, from cheap to dear: divergence and onset by prefill alone, then generation for what survives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

from excise.behaviors import Behavior, PromptSet
from excise.edit import Edit
from excise.evaluation import Onset, Reference, behavior_rate
from excise.model import EditableModel
from excise.progress import Progress, silent
from excise.search.trial import UNLIMITED, Limits, Measured

MOST_KL = 1e6
_SLACK = 0.15


@dataclass(frozen=True)
class BehaviorObjective:
    """Behavior rate on target prompts, divergence from the base model on baseline prompts.

    prompts    of one split
    reference  what the base model does on its baseline prompts
    onset      where the base model begins to show the behavior on its target prompts; None: no screening by it
    base_rate  how often the base model shows it there; None where it was not measured
    """

    model: EditableModel
    behavior: Behavior
    prompts: PromptSet
    reference: Reference
    onset: Onset | None
    base_rate: float | None
    max_tokens: int | None = None
    batch_size: int | None = None

    @classmethod
    def measure_base(
        cls,
        model: EditableModel,
        behavior: Behavior,
        prompts: PromptSet,
        *,
        screening: bool = True,
        max_tokens: int | None = None,
        batch_size: int | None = None,
        progress: Progress = silent,
    ) -> BehaviorObjective:
        """Measure the base model, which must have no edit live.

        screening  whether trials can be screened by their onset; False saves the base model's responses
        """
        reference = Reference.measure(model, prompts.baseline, behavior, batch_size=batch_size, progress=progress)
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
            onset = Onset.measure(model, prompts.target, behavior, base.responses, batch_size=batch_size)
        return cls(model, behavior, prompts, reference, onset, base_rate, max_tokens, batch_size)

    def __call__(self, edit: Edit, limits: Limits = UNLIMITED) -> Measured:
        """Measure an edit; nothing is generated where its KL or its estimated rate exceeds the limits."""
        with self.model.edited(edit):
            divergence = self.reference.compare(self.model)
            estimate = None if self.onset is None else self.onset.estimated_rate(self.model)
            reason = self._screen(divergence.sequence.mean, estimate, limits)
            screened = reason != ""
            rate = estimate if screened and estimate is not None else self._rate()
        return Measured(
            rate=rate,
            kl_first=_finite(divergence.first.mean),
            kl_sequence=_finite(divergence.sequence.mean),
            prompts=len(self.prompts.target),
            estimate=estimate,
            screened=screened,
            reason=reason,
        )

    def prefill(self, edit: Edit) -> Measured:
        """Measure an edit without generating: the rate is an estimate, as of a screened trial."""
        return self(edit, Limits(kl=-1.0, onset=0.0))

    def sample(self, *, targets: int, baselines: int, tokens: int) -> BehaviorObjective:
        """The same on fewer prompts and shorter continuations, for rough comparisons by `prefill`."""
        prompts = PromptSet(self.prompts.target[:targets], self.prompts.baseline[:baselines])
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
            self.model, prompts.baseline, self.behavior, tokens=tokens, batch_size=self.batch_size
        )
        return replace(self, prompts=prompts, onset=onset, reference=reference)

    def _screen(self, kl: float, estimate: float | None, limits: Limits) -> str:
        if estimate is None:
            return ""
        if not kl <= limits.kl:  # NaN is above any limit
            return f"sequence KL above {limits.kl:.3g}"
        if self.base_rate and estimate >= limits.onset * self.base_rate:
            return "the behavior is still there at its onset"
        if any(rate + _SLACK <= estimate and known <= kl for rate, known in limits.measured):
            return "another trial is better in both"
        return ""

    def _rate(self) -> float:
        result = behavior_rate(
            self.model,
            self.prompts.target,
            self.behavior,
            max_tokens=self.max_tokens,
            batch_size=self.batch_size,
            stop_early=True,
        )
        return result.rate.value


def _finite(kl: float) -> float:
    """A model broken so far that its KL is not a number is as bad as can be."""
    return kl if isfinite(kl) else MOST_KL
