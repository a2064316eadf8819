"""Everything that is measured about one model, edited or not, on one split of a behavior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from excise.behaviors import Behavior, Split, Splits
from excise.behaviors.measures import Label
from excise.behaviors.splits import Side
from excise.edit import Edit
from excise.errors import InputError
from excise.evaluation.labelling import MARKERS, label_all, labellers_for
from excise.evaluation.positions import Positions
from excise.evaluation.rate import Rate, RateResult, behavior_rate, label_responses
from excise.evaluation.reference import Divergence, Reference
from excise.evaluation.registry import Subject, ask, scorers
from excise.evaluation.requested import answers_of_subject
from excise.evaluation.shipped.strata import STRATA, has_strata, strata
from excise.model import EditableModel
from excise.model.generate import Response
from excise.progress import Progress, silent
from excise.runs import finite


@dataclass(frozen=True)
class Scores:
    """What was measured on one split.

    rate           how often target prompts show the behavior
    baseline_rate  how often baseline prompts do; None where it was not asked for
    keep_rate      how often prompts where it must stay do; None where there are none, or it was not asked for
    divergence     from the base model, on baseline prompts alone
    split          the prompts' split
    others         what further registered scorers found (in `to_json` None stands for what is not finite), and the
                   rates by category and language ("strata") where prompts have any
    positions      where in the responses to target prompts the behavior begins
    labels         of those responses, by the name of the labeller ("markers": the behavior's detectors); from here on
                   nothing is part of `to_json`
    unfinished     for each of them, whether it never left its thinking
    responses      to the target prompts, in their order
    keep_labels, keep_unfinished, keep_responses  the same of prompts to keep
    """

    rate: Rate
    divergence: Divergence
    split: Split
    baseline_rate: Rate | None = None
    keep_rate: Rate | None = None
    others: Mapping[str, Any] = field(default_factory=dict)
    positions: Positions | None = None
    labels: Mapping[str, tuple[Label | None, ...]] = field(default_factory=dict)
    baseline_labels: tuple[Label, ...] = ()
    unfinished: tuple[bool, ...] = ()
    responses: tuple[Response, ...] = ()
    baseline_responses: tuple[Response, ...] = ()
    keep_labels: Mapping[str, tuple[Label | None, ...]] = field(default_factory=dict)
    keep_unfinished: tuple[bool, ...] = ()
    keep_responses: tuple[Response, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON values, flat: `rate`, `rate_interval`, `labels`, `kl_first`, `kl_sequence`, `top1`, `keep_rate`, …"""
        sides = {"baseline": self.baseline_rate, "keep": self.keep_rate}
        known = {side: rate.to_json() for side, rate in sides.items() if rate is not None}
        where = {} if self.positions is None else {"positions": self.positions.to_json()}
        return {
            "split": self.split,
            **self.rate.to_json(),
            **self.divergence.to_json(),
            **{f"{side}_{key}": value for side, rate in known.items() for key, value in rate.items()},
            **where,
            **finite(self.others),
        }


def evaluate(
    model: EditableModel,
    behavior: Behavior | str,
    *,
    edit: Edit | None = None,
    split: Split = "report",
    splits: Splits | None = None,
    reference: Reference | None = None,
    max_tokens: int | None = None,
    target_tokens: int | None = None,
    tokens: int = 32,
    batch_size: int | None = None,
    baseline: bool = True,
    known: Mapping[Side, Sequence[Response]] | None = None,
    labellers: Sequence[str] = (),
    further: bool = True,
    seed: int = 0,
    offline: bool = False,
    progress: Progress = silent,
) -> Scores:
    """Score a model on one split, with `edit` live if one is given; the model is left as it was.

    splits      None makes the behavior's own, with `seed`
    reference   what the base model does on the split's baseline prompts; None measures it first
    max_tokens  per response; None: the behavior's own
    target_tokens  per response to a target prompt, where those may be longer than others
    tokens      of the base model's continuations that the divergence covers
    known       responses of this very model and edit that are there already, by the side of the prompts
    labellers   further ones that label the responses to target prompts and to those to keep, by name
    further     whether registered scorers are asked
    baseline    whether the behavior's rate on baseline prompts, and on those to keep, is measured too

    Raises `BehaviorError`, `PromptError`, `EditMismatchError`, `ModelError`, `ScorerError`, `InputError`.
    """
    loaded = Behavior.load(behavior) if isinstance(behavior, str) else behavior
    prompts = (splits or loaded.splits(seed=seed, offline=offline))[split]
    if reference is None:
        reference = Reference.measure(
            model, prompts.baseline, loaded, tokens=tokens, batch_size=batch_size, progress=progress
        )
    elif len(reference.prompts) != len(prompts.baseline):
        raise InputError(
            f"the reference covers {len(reference.prompts)} prompts, the split {len(prompts.baseline)}",
            hint="measure the reference on the baseline prompts of the same split",
        )

    longest = target_tokens or max_tokens or loaded.max_tokens

    def rate_on(side: Side, most: int | None) -> RateResult:
        if known is not None and side in known:
            return label_responses(known[side], loaded, model.template)
        asked: Sequence[str] = getattr(prompts, side)
        return behavior_rate(model, asked, loaded, max_tokens=most, batch_size=batch_size, progress=progress)

    with model.edited(edit) if edit is not None else nullcontext():
        divergence = reference.compare(model, progress=progress)
        target = rate_on("target", longest)
        other = rate_on("baseline", max_tokens) if baseline else None
        kept = rate_on("keep", longest) if baseline and prompts.keep else None
        subject = Subject(
            model,
            loaded,
            prompts,
            reference,
            max_tokens,
            batch_size,
            progress,
            target.responses,
            other.responses if other else (),
            divergence,
            kept.responses if kept else (),
        )
        asked = scorers() if further else ()
        others = {key: value for name in asked for key, value in ask(name, subject).items()}
        if STRATA not in others and has_strata(prompts):
            others[STRATA] = strata(subject)
        labels, keep_labels, said = _labelled(subject, target, kept, labellers)
    return Scores(
        rate=target.rate,
        divergence=divergence,
        split=split,
        baseline_rate=other.rate if other else None,
        keep_rate=kept.rate if kept else None,
        others=others | said,
        positions=Positions.of(target.responses, loaded, model.template, max_tokens=longest),
        labels=labels,
        baseline_labels=other.labels if other else (),
        unfinished=target.unfinished,
        responses=target.responses,
        baseline_responses=other.responses if other else (),
        keep_labels=keep_labels,
        keep_unfinished=kept.unfinished if kept else (),
        keep_responses=kept.responses if kept else (),
    )


_Labels = dict[str, tuple[Label | None, ...]]


def _labelled(
    subject: Subject, target: RateResult, kept: RateResult | None, names: Sequence[str]
) -> tuple[_Labels, _Labels, dict[str, Any]]:
    """Labels of responses to target prompts and to those to keep, by labeller; what labellers say of the former."""
    labels: _Labels = {MARKERS: target.labels}
    keep_labels: _Labels = {MARKERS: kept.labels} if kept else {}
    if not names:
        return labels, keep_labels, {}
    chosen = labellers_for(subject.behavior, names)
    said = label_all(answers_of_subject(subject), chosen)
    labels |= {name: verdicts.labels for name, verdicts in said.verdicts.items()}
    if kept:
        also = label_all(answers_of_subject(subject, "keep"), chosen)
        keep_labels |= {name: verdicts.labels for name, verdicts in also.verdicts.items()}
    return labels, keep_labels, said.to_json()
