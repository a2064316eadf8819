"""Splits: which prompts directions are fitted on, searched on, chosen on and reported on. Never the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from excise.behaviors.prompt import Prompt, normalised
from excise.errors import PromptError

Split = Literal["fit", "tune", "select", "report"]
Side = Literal["target", "baseline", "keep"]
Reason = Literal["repeated", "elsewhere", "near", "not shown"]
SPLITS: tuple[Split, ...] = get_args(Split)
SIDES: tuple[Side, ...] = get_args(Side)
_REASONS: Mapping[Reason, str] = {
    "repeated": "repeated in their source",
    "elsewhere": "in another source too",
    "near": "near-duplicates of prompts that are used",
    "not shown": "the model does not show the behavior on them",
}
MINIMUM: Mapping[Split, int] = {"fit": 16, "tune": 8, "select": 8, "report": 16}


@dataclass(frozen=True)
class SplitSizes:
    """How many prompts each split takes at most, per side (target, baseline and keep).

    fit     directions are computed on it
    tune    the search scores its trials on it
    select  the front is scored again on it, and the result chosen
    report  the final figures; used once
    """

    fit: int = 128
    tune: int = 50
    select: int = 50
    report: int = 100

    def __post_init__(self) -> None:
        if min(self.fit, self.tune, self.select, self.report) < 1:
            raise PromptError("every split needs at least one prompt", hint="give four sizes: --splits 128,50,50,100")

    def of(self, split: Split) -> int:
        """The size of one split."""
        return int(getattr(self, split))

    def minimum(self, split: Split) -> int:
        """How far a split may shrink where prompts are few: asked for less, less is enough."""
        return min(self.of(split), MINIMUM[split])


@dataclass(frozen=True)
class PromptSet:
    """The prompts of one split: `target` shows the behavior, `baseline` does not, and on `keep` it must stay."""

    target: tuple[str, ...]
    baseline: tuple[str, ...]
    keep: tuple[str, ...] = ()

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Prompts whose answers must stay as they are: `baseline`, and after it `keep`.

        A search counts divergence on all of them as damage; reports give that of `baseline` alone.
        """
        return (*self.baseline, *self.keep)

    @property
    def mixed(self) -> tuple[str, ...]:
        """The same in turn, so that the first few are of both kinds; what one kind has more of comes last."""
        both = min(len(self.baseline), len(self.keep))
        pairs = zip(self.baseline, self.keep, strict=False)
        return (*(prompt for pair in pairs for prompt in pair), *self.baseline[both:], *self.keep[both:])


@dataclass(frozen=True)
class LeftOut:
    """Prompts of a source that are not used.

    side     of which kind they are, and
    splits   for which splits
    reason   "repeated" within their source; "elsewhere": also in another source; "near": a near-duplicate of a prompt
             that is used; "not shown": the model does not show the behavior on it
    count    how many, near-duplicates only as far as they were looked at: until the splits were full
    example  one of them, and
    like     the prompt that it is like, where that is the reason
    """

    side: Side
    splits: tuple[Split, ...]
    reason: Reason
    count: int
    example: str
    like: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values, without prompts."""
        return {"side": self.side, "splits": list(self.splits), "reason": self.reason, "count": self.count}

    def told(self) -> str:
        """The sentence that says so."""
        like = f" (like {quoted(self.like)})" if self.like else ""
        return (
            f"{self.count} {self.side} {'prompt' if self.count == 1 else 'prompts'} for {', '.join(self.splits)} left "
            f"out: {_REASONS[self.reason]}, such as {quoted(self.example)}{like}"
        )


@dataclass(frozen=True)
class Splits:
    """Four disjoint sets of prompts. Raises `PromptError` where any prompt is in two of them, or on two sides.

    left_out  what was not used of the sources
    notes     what else the user should know of the prompts
    """

    fit: PromptSet
    tune: PromptSet
    select: PromptSet
    report: PromptSet
    left_out: tuple[LeftOut, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for split in SPLITS:
            for side in SIDES:
                place = f"{side} of {split}"
                for prompt in getattr(self[split], side):
                    before = seen.setdefault(normalised(prompt), place)
                    if before is not place:
                        raise PromptError(
                            f"a prompt is in {before} and in {place}: {quoted(prompt)}",
                            hint="every prompt may be used once, and for one side",
                        )

    def __getitem__(self, split: Split) -> PromptSet:
        prompts = getattr(self, split)
        assert isinstance(prompts, PromptSet)
        return prompts

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of the prompts, and of those that are not used."""
        return (*(item.told() for item in self.left_out if item.reason != "repeated"), *self.notes)

    def sizes(self) -> dict[str, list[int]]:
        """`{"fit": [targets, baselines], ...}`; where there are prompts to keep, their number is third."""
        keeps = any(self[split].keep for split in SPLITS)
        sides = SIDES if keeps else SIDES[:2]
        return {split: [len(getattr(self[split], side)) for side in sides] for split in SPLITS}

    def digest(self) -> dict[str, str]:
        """A SHA-256 of each split's prompts, order included: enough to tell that two runs used the same ones."""
        return {split: _digest(self[split]) for split in SPLITS}

    def with_fit_targets(self, indices: Sequence[int], *, paired: bool) -> Splits:
        """The same with only these target prompts to fit on, those where the behavior is shown; of pairs, both."""
        others = [prompt for index, prompt in enumerate(self.fit.target) if index not in set(indices)]
        left_out = [LeftOut("target", ("fit",), "not shown", len(others), str(others[0]))] if others else []
        target = tuple(self.fit.target[index] for index in indices)
        baseline = tuple(self.fit.baseline[index] for index in indices) if paired else self.fit.baseline
        fit = replace(self.fit, target=target, baseline=baseline)
        return replace(self, fit=fit, left_out=(*self.left_out, *left_out))


def quoted(prompt: str) -> str:
    """A prompt in quotation marks, on one short line."""
    line = " ".join(prompt.split())
    return f"“{line if len(line) <= 60 else line[:59] + '…'}”"


def _digest(prompts: PromptSet) -> str:
    digest = hashlib.sha256()
    for side in (prompts.target, prompts.baseline, *([prompts.keep] if prompts.keep else [])):
        digest.update(len(side).to_bytes(8, "big"))
        for prompt in side:
            about = prompt.context if isinstance(prompt, Prompt) else ((), None)
            encoded = (str(prompt) if about == ((), None) else f"{prompt}\0{about!r}").encode()
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
