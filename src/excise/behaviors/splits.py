"""Splits: which prompts directions are fitted on, searched on, chosen on and reported on. Never the same ones."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from excise.behaviors.source import Source, normalised
from excise.errors import PromptError

Split = Literal["fit", "tune", "select", "report"]
SPLITS: tuple[Split, ...] = get_args(Split)
MINIMUM: Mapping[Split, int] = {"fit": 16, "tune": 8, "select": 8, "report": 16}


@dataclass(frozen=True)
class SplitSizes:
    """How many prompts each split takes at most, per side (target and baseline).

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
    """The prompts of one split: `target` shows the behavior, `baseline` does not."""

    target: tuple[str, ...]
    baseline: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    """Four disjoint sets of prompts. Raises `PromptError` where any prompt is in two of them, or on both sides."""

    fit: PromptSet
    tune: PromptSet
    select: PromptSet
    report: PromptSet

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for split in SPLITS:
            for side in ("target", "baseline"):
                for prompt in getattr(self[split], side):
                    place = f"{side} of {split}"
                    before = seen.setdefault(normalised(prompt), place)
                    if before is not place:
                        raise PromptError(
                            f"a prompt is in {before} and in {place}: {_quoted(prompt)}",
                            hint="every prompt may be used once, and for one side",
                        )

    def __getitem__(self, split: Split) -> PromptSet:
        prompts = getattr(self, split)
        assert isinstance(prompts, PromptSet)
        return prompts

    def sizes(self) -> dict[str, list[int]]:
        """`{"fit": [targets, baselines], ...}`."""
        return {split: [len(self[split].target), len(self[split].baseline)] for split in SPLITS}

    def digest(self) -> dict[str, str]:
        """A SHA-256 of each split's prompts, order included: enough to tell that two runs used the same ones."""
        return {split: _digest(self[split]) for split in SPLITS}


def make_splits(
    target: Mapping[Split, Source],
    baseline: Mapping[Split, Source],
    *,
    sizes: SplitSizes,
    seed: int,
    offline: bool,
) -> Splits:
    """Read both sides and cut them into splits. Raises `PromptError`."""
    pools = {
        "target": _read(target, offline=offline),
        "baseline": _read(baseline, offline=offline),
    }
    _check_apart(pools["target"], pools["baseline"])
    sides = {
        side: _cut(pool, sources, sizes=sizes, seed=seed, side=side)
        for (side, pool), sources in zip(pools.items(), (target, baseline), strict=True)
    }
    return Splits(**{split: PromptSet(sides["target"][split], sides["baseline"][split]) for split in SPLITS})


def _read(sources: Mapping[Split, Source], *, offline: bool) -> dict[Source, list[str]]:
    """Every source once. A prompt in two sources stays in the one of the later split: what is held out stays so."""
    pools: dict[Source, list[str]] = {}
    taken: set[str] = set()
    for split in reversed(SPLITS):
        source = sources[split]
        if source in pools:
            continue
        fresh = [prompt for prompt in source.read(offline=offline) if normalised(prompt) not in taken]
        taken.update(normalised(prompt) for prompt in fresh)
        pools[source] = fresh
    return pools


def _check_apart(target: Mapping[Source, list[str]], baseline: Mapping[Source, list[str]]) -> None:
    targets = {normalised(prompt) for prompts in target.values() for prompt in prompts}
    shared = [prompt for prompts in baseline.values() for prompt in prompts if normalised(prompt) in targets]
    if shared:
        raise PromptError(
            f"{len(shared)} {'prompt is' if len(shared) == 1 else 'prompts are'} in both target and baseline, "
            f"such as {_quoted(shared[0])}",
            hint="target prompts show the behavior and baseline prompts do not: take each out of one side",
        )


def _cut(
    pools: Mapping[Source, list[str]], sources: Mapping[Split, Source], *, sizes: SplitSizes, seed: int, side: str
) -> dict[Split, tuple[str, ...]]:
    cut: dict[Split, tuple[str, ...]] = {}
    for source, pool in pools.items():
        sharing = [split for split in SPLITS if sources[split] == source]
        shuffled = random.Random(seed).sample(pool, len(pool))
        start = 0
        for split, size in _shares(len(pool), sharing, sizes=sizes, source=source, side=side).items():
            cut[split] = tuple(shuffled[start : start + size])
            start += size
    return cut


def _shares(count: int, sharing: list[Split], *, sizes: SplitSizes, source: Source, side: str) -> dict[Split, int]:
    """How many of `count` prompts each split gets: its size, or where they do not suffice less, in proportion."""
    wanted = {split: sizes.of(split) for split in sharing}
    total = sum(wanted.values())
    if count >= total:
        return wanted
    least = {split: sizes.minimum(split) for split in sharing}
    if count < sum(least.values()):
        raise PromptError(
            f"{source.location} holds {count} different {side} prompts, too few for {', '.join(sharing)}",
            hint=f"give at least {sum(least.values())}, better {total}",
        )
    # What lies above the minima is shared out in proportion; the rest of the division goes to the later splits.
    spare, above = count - sum(least.values()), total - sum(least.values())
    shares: dict[Split, int] = {}
    used = cumulative = 0
    for split in sharing:
        cumulative += wanted[split] - least[split]
        extra = cumulative * spare // above - used
        used += extra
        shares[split] = least[split] + extra
    return shares


def _digest(prompts: PromptSet) -> str:
    digest = hashlib.sha256()
    for side in (prompts.target, prompts.baseline):
        digest.update(len(side).to_bytes(8, "big"))
        for prompt in side:
            encoded = prompt.encode()
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def _quoted(prompt: str) -> str:
    line = " ".join(prompt.split())
    return f"“{line if len(line) <= 60 else line[:59] + '…'}”"
