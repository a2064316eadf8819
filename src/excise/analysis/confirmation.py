"""Whether the components that an attribution names matter: ablate them, and as many others at random.

An attribution is linear and looks at one direction; a model may do without a component, or make up for it. What an
ablation does is measured by prefill alone, on prompts that the direction was not found on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from excise.analysis.attribution import Attribution
from excise.analysis.pools import Component, Kind, Pool, ablation
from excise.behaviors import Behavior, PromptSet
from excise.edit import Edit
from excise.errors import BehaviorNotShownError
from excise.evaluation import Onset, Reference, behavior_rate
from excise.model import EditableModel
from excise.progress import Progress, silent

MOST_KL = 1e6
_TIMES = 2  # how much further the log-odds must fall than for a random set: there are few of them to compare with
_SHARE = 10  # at most one component in so many is removed at once: beyond that, any set of them breaks a model


@dataclass(frozen=True)
class Effect:
    """What a model does, edited or not.

    rate         estimated share of target prompts on which it shows the behavior
    margin       mean log-odds that it begins to, where the base model did
    kl_first, kl_sequence  mean KL from the base model on baseline prompts
    """

    rate: float
    margin: float
    kl_first: float
    kl_sequence: float

    def to_json(self) -> dict[str, float]:
        """JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Confirmation:
    """What ablating the components of one kind does that write the behavior most.

    components  those that were ablated
    base        nothing ablated
    together    all of them at once
    singly      the first few, one at a time
    control     as many others of the same kind, drawn at random, several times
    """

    kind: Kind
    components: tuple[Component, ...]
    base: Effect
    together: Effect
    singly: tuple[Effect, ...]
    control: tuple[Effect, ...]

    @property
    def confirmed(self) -> bool:
        """Whether the log-odds of the behavior fall, and at least twice as far as in any random ablation.

        Never where there is nothing to compare with.
        """
        fall, *others = (self.base.margin - effect.margin for effect in (self.together, *self.control))
        return bool(others) and fall > 0 and fall >= _TIMES * max(others)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "kind": self.kind,
            "components": [component.to_json() for component in self.components],
            "together": self.together.to_json(),
            "singly": [effect.to_json() for effect in self.singly],
            "control": [effect.to_json() for effect in self.control],
            "confirmed": self.confirmed,
        }


@dataclass(frozen=True)
class Bench:
    """The base model's onsets and continuations, to measure edits against.

    base  what the base model does itself
    """

    model: EditableModel
    reference: Reference
    onset: Onset
    base: Effect

    @classmethod
    def measure(
        cls,
        model: EditableModel,
        behavior: Behavior,
        prompts: PromptSet,
        *,
        batch_size: int | None = None,
        progress: Progress = silent,
    ) -> Bench:
        """Measure the base model. Raises `BehaviorNotShownError` where it never shows the behavior."""
        reference = Reference.measure(model, prompts.baseline, behavior, batch_size=batch_size, progress=progress)
        base = behavior_rate(model, prompts.target, behavior, batch_size=batch_size, stop_early=True, progress=progress)
        onset = Onset.measure(model, prompts.target, behavior, base.responses, batch_size=batch_size)
        if not onset.rows:
            raise BehaviorNotShownError(
                f"{model.name} shows the behavior on none of {len(prompts.target)} prompts: nothing to ablate",
                hint="check the prompts and the markers, or attribute without confirmation",
            )
        return cls(model, reference, onset, _effect(model, reference, onset))

    def effect(self, edit: Edit) -> Effect:
        """What the edit does, by prefill alone."""
        with self.model.edited(edit):
            return _effect(self.model, self.reference, self.onset)


def confirm(
    bench: Bench,
    found: Attribution,
    pool: Pool,
    *,
    top: int,
    singly: int = 3,
    draws: int = 3,
    seed: int = 0,
    progress: Progress = silent,
) -> Confirmation | None:
    """Ablate the `top` components that write the behavior most, at most a tenth of their kind; None where none does.

    singly  how many of them are also ablated alone
    draws   how many random sets of equal size are ablated for comparison
    """
    survey = bench.model.survey
    places = pool.writing(min(top, max(1, len(pool) // _SHARE)))
    if not places:
        return None
    chosen = [pool.at(place) for place in places]
    controls = [
        [pool.at(place) for place in pool.others(places, len(places), seed=seed + draw)] for draw in range(draws)
    ]
    trials: list[Sequence[Component]] = [chosen, *([one] for one in chosen[:singly])]
    trials += [control for control in controls if len(control) == len(chosen)]
    effects = []
    for number, components in enumerate(trials):
        progress(f"ablating {pool.kind}s", number, len(trials), "sets")
        effects.append(bench.effect(ablation(survey, found, components)))
    progress(f"ablating {pool.kind}s", len(trials), len(trials), "sets")
    alone = 1 + len(chosen[:singly])
    return Confirmation(
        pool.kind, tuple(chosen), bench.base, effects[0], tuple(effects[1:alone]), tuple(effects[alone:])
    )


def _effect(model: EditableModel, reference: Reference, onset: Onset) -> Effect:
    """What the model does with whatever edit is live."""
    divergence, margin = reference.compare(model), onset.margin(model)
    return Effect(
        rate=int((margin > 0).sum()) / onset.total,
        margin=float(margin.mean()),
        kl_first=_finite(divergence.first.mean),
        kl_sequence=_finite(divergence.sequence.mean),
    )


def _finite(kl: float) -> float:
    """A model broken so far that its KL is not a number is as bad as can be."""
    return kl if isfinite(kl) else MOST_KL
