"""Models by the same ruler: one as it stands, under an edit, and another one, on the same prompts of any behaviors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from excise.behaviors import Behavior, Split, Splits
from excise.edit import Edit
from excise.edit.digest import digest
from excise.errors import InputError
from excise.evaluation import Reference, Scores, evaluate
from excise.evaluation.baseline import Baselines
from excise.evaluation.comparison import compare
from excise.evaluation.keeping import compare_kept
from excise.evaluation.lengths import report_tokens
from excise.evaluation.paired import bootstrap_mean, mean_difference
from excise.model import EditableModel
from excise.progress import Progress, silent
from excise.runs import key
from excise.seal import read_report
from excise.validation import save_responses

BASE, EDITED, AGAINST = "model", "edited", "against"


@dataclass(frozen=True)
class Subject:
    """One behavior on one split; `name` is unique among those that are compared in one call."""

    name: str
    behavior: Behavior
    splits: Splits


@dataclass
class Measured:
    """What is known of one behavior: the base model's reference, and the scores of each model."""

    subject: Subject
    reference: Reference
    scores: dict[str, Scores] = field(default_factory=dict)
    seal: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Ruler:
    """How everything is measured.

    split      whose prompts
    tokens     of a response to a target prompt; None: in the report split 512 or the behavior's own where that is
               more, in others the behavior's own
    labellers  further ones, by name
    baselines  where results of the base model are kept
    """

    split: Split = "report"
    tokens: int | None = None
    batch_size: int | None = None
    seed: int = 0
    labellers: tuple[str, ...] = ()
    baselines: Baselines = field(default_factory=lambda: Baselines(None))
    progress: Progress = silent

    def begin(self, model: EditableModel, subjects: Sequence[Subject]) -> list[Measured]:
        """Measure the base model, which must have no edit live, on every behavior."""
        names = [subject.name for subject in subjects]
        if len(set(names)) < len(names):
            raise InputError(f"a behavior is given twice: {', '.join(names)}", hint="give each behavior once")
        return [self._begun(model, subject) for subject in subjects]

    def add(self, measured: Sequence[Measured], name: str, model: EditableModel, edit: Edit | None = None) -> None:
        """Measure another model, or this one under an edit, on the same prompts."""
        for each in measured:
            each.scores[name] = self._scores(model, each.subject, each.reference, edit=edit)

    def read(
        self,
        measured: Measured,
        model: EditableModel,
        *,
        directory: Path | None,
        edit: Edit | None,
        against: str | None,
    ) -> None:
        """Log that the report split was read, in the directory of the edit's run, or of this comparison."""
        if self.split == "report":
            identity = model.identity
            measured.seal = read_report(
                directory,
                digest=measured.subject.splits.digest()["report"],
                model=key([identity.config_hash, identity.checkpoint_hash]),
                edit=None if edit is None else digest(edit),
                command="excise eval",
                settings={"tokens": self._longest(measured.subject.behavior), "against": against},
            ).to_json()

    def to_json(self, measured: Measured) -> dict[str, Any]:
        """The behavior's scores by model, and each pair of models compared. No prompt and no response is in it."""
        pairs = [(one, other) for one, other in combinations(measured.scores, 2)]
        return {
            "behavior": measured.subject.behavior.name,
            "thinking": measured.subject.behavior.thinking,
            "split": self.split,
            "splits": measured.subject.splits.sizes(),
            "prompts": measured.subject.splits.digest(),
            "tokens": self._longest(measured.subject.behavior),
            "scores": {name: scores.to_json() for name, scores in measured.scores.items()},
            "comparisons": [
                {"first": one, "second": other, **self._compared(measured.scores[one], measured.scores[other])}
                for one, other in pairs
            ],
            "seal": measured.seal,
        }

    def save(self, measured: Measured, path: Path) -> None:
        """Write every prompt's responses, labels and divergences, one JSON line each."""
        save_responses(path, measured.subject.splits[self.split], measured.scores)

    def _begun(self, model: EditableModel, subject: Subject) -> Measured:
        prompts, behavior = subject.splits[self.split], subject.behavior
        reference = self.baselines.reference(
            model, prompts.baseline, behavior, batch_size=self.batch_size, progress=self.progress
        )
        longest = self._longest(behavior)
        lengths = {"target": longest, "baseline": behavior.max_tokens, "keep": longest}
        known = {
            side: self.baselines.responses(
                model, some, behavior, max_tokens=lengths[side], batch_size=self.batch_size, progress=self.progress
            )
            for side, some in (("target", prompts.target), ("baseline", prompts.baseline), ("keep", prompts.keep))
            if some
        }
        scores = self._scores(model, subject, reference, known=known)
        return Measured(subject, reference, {BASE: scores})

    def _scores(
        self,
        model: EditableModel,
        subject: Subject,
        reference: Reference,
        *,
        edit: Edit | None = None,
        known: Mapping[Any, Any] | None = None,
    ) -> Scores:
        return evaluate(
            model,
            subject.behavior,
            edit=edit,
            split=self.split,
            splits=subject.splits,
            reference=reference,
            target_tokens=self._longest(subject.behavior),
            batch_size=self.batch_size,
            known=known,
            labellers=self.labellers,
            progress=self.progress,
        )

    def _longest(self, behavior: Behavior) -> int:
        return report_tokens(behavior, self.tokens) if self.split == "report" else self.tokens or behavior.max_tokens

    def _compared(self, first: Scores, second: Scores) -> dict[str, Any]:
        """Labels paired by prompt; divergences from the base model too, which are 0 for the base model itself."""
        labels = compare(first.labels, second.labels, seed=self.seed)
        found: dict[str, Any] = {"labellers": {name: each.to_json() for name, each in labels.items()}}
        if kept := compare_kept(first.keep_labels, second.keep_labels, seed=self.seed):
            found["keep"] = kept
        values: Mapping[str, Callable[[Scores], Sequence[float]]] = {
            "kl_first": lambda scores: scores.divergence.first_each,
            "kl_sequence": lambda scores: scores.divergence.sequence_each,
        }
        for name, of in values.items():
            found[name] = mean_difference(of(first), of(second), seed=self.seed).to_json()
            found[f"{name}_interval"] = list(bootstrap_mean(of(second), seed=self.seed))
        return found
