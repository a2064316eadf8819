"""From sources to splits: what is read once, what repeats is left out, and what is held out stays held out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from excise.behaviors.duplicates import NEAR, Similarity, Vectors
from excise.behaviors.prompt import Prompt, normalised, words_of
from excise.behaviors.source import Source
from excise.behaviors.splits import SPLITS, LeftOut, PromptSet, Reason, Side, Split, Splits, SplitSizes, quoted
from excise.errors import PromptError

Overlap = Literal["refuse", "drop"]
Unit = tuple[Prompt, ...]
"""Prompts that stay together: one, or the two of a pair."""

_BLOCK = 256


@dataclass
class _Pool:
    """What one source holds (of pairs: one for each side), and the splits that share it."""

    sides: tuple[Side, ...]
    sources: tuple[Source, ...]
    splits: tuple[Split, ...]
    units: list[Unit] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " with ".join(dict.fromkeys(source.location for source in self.sources))

    @property
    def kind(self) -> str:
        return " and ".join(self.sides)

    def may_hold_near(self, other: _Pool) -> bool:
        """Whether near-duplicates in both may stay: they end in the same split, or on different sides."""
        return (self.splits == other.splits and len(self.splits) == 1) or not set(self.sides) & set(other.sides)


def make_splits(
    sources: Mapping[Side, Mapping[Split, Source]],
    *,
    paired: bool = False,
    overlap: Overlap = "refuse",
    near_duplicates: float = NEAR,
    sizes: SplitSizes,
    seed: int,
    offline: bool,
) -> Splits:
    """Read all sides and cut them into splits. Raises `PromptError`.

    paired           target and baseline prompts belong together row by row, and stay in one split
    overlap          what to do about a prompt of the report source that is in another source, too: refuse to go on, or
                     drop it from the other one
    near_duplicates  similarity from which on two prompts count as one; 0: only equal ones do
    """
    pools = list(_pools(sources, paired=paired))
    left_out: list[LeftOut] = []
    for pool in pools:
        left_out += _fill(pool, offline=offline)
    left_out += _without_shared(pools, overlap)
    shuffled = [random.Random(seed).sample(pool.units, len(pool.units)) for pool in pools]
    wanted = [sum(sizes.of(split) for split in pool.splits) for pool in pools]
    corpus = [
        prompt for units, count in zip(shuffled, wanted, strict=True) for unit in units[: 2 * count] for prompt in unit
    ]
    similarity = Similarity(corpus, near_duplicates)
    chooser = _Chooser(similarity, overlap)
    cut: dict[tuple[Split, Side], tuple[Prompt, ...]] = {}
    for pool, units, count in zip(pools, shuffled, wanted, strict=True):
        chosen, near = chooser.choose(pool, units, count)
        left_out += near
        start = 0
        for split, size in _shares(len(chosen), pool, sizes=sizes, near=sum(item.count for item in near)).items():
            for index, side in enumerate(pool.sides):
                cut[split, side] = tuple(unit[index] for unit in chosen[start : start + size])
            start += size
    sets = {
        split: PromptSet(cut[split, "target"], cut[split, "baseline"], cut.get((split, "keep"), ())) for split in SPLITS
    }
    return Splits(**sets, left_out=tuple(left_out), notes=_alike(sets, similarity))


def _pools(sources: Mapping[Side, Mapping[Split, Source]], *, paired: bool) -> Iterator[_Pool]:
    """Every source once, those of later splits first: what is held out is the first to be taken."""
    groups: tuple[tuple[Side, ...], ...] = (("target", "baseline"),) if paired else (("target",), ("baseline",))
    seen: set[tuple[tuple[Side, ...], tuple[Source, ...]]] = set()
    for split in reversed(SPLITS):
        for sides in (*groups, ("keep",)):
            if any(split not in sources.get(side, {}) for side in sides):
                continue
            key = tuple(sources[side][split] for side in sides)
            if (sides, key) in seen:
                continue
            seen.add((sides, key))
            sharing = tuple(
                other
                for other in SPLITS
                if all(sources[side].get(other) == one for side, one in zip(sides, key, strict=True))
            )
            yield _Pool(sides, key, sharing)


def _fill(pool: _Pool, *, offline: bool) -> list[LeftOut]:
    """Read a pool's units; blank ones and repetitions are left out."""
    rows = [source.rows(offline=offline) for source in pool.sources]
    if len({len(side) for side in rows}) > 1:
        raise PromptError(
            f"{pool.name} are paired row by row, but hold {' and '.join(str(len(side)) for side in rows)} rows",
            hint="give both as many rows, in the same order",
        )
    seen: dict[str, Prompt] = {}
    repeated: list[tuple[Prompt, Prompt]] = []
    for row in zip(*rows, strict=True):
        unit = tuple(prompt for prompt in row if prompt is not None)
        if len(unit) < len(row):
            continue
        again = next((prompt for prompt in unit if normalised(prompt) in seen), None)
        if again is not None:
            repeated.append((again, seen[normalised(again)]))
            continue
        if len({normalised(prompt) for prompt in unit}) < len(unit):
            raise PromptError(
                f"a pair of {pool.name} is twice the same prompt: {quoted(unit[0])}",
                hint="the two of a pair must differ, in their words or their system prompt",
            )
        seen.update((normalised(prompt), prompt) for prompt in unit)
        pool.units.append(unit)
    return _told(pool, "repeated", repeated)


def _without_shared(pools: Sequence[_Pool], overlap: Overlap) -> list[LeftOut]:
    """Take out of each pool what an earlier one (of a later split) holds, too; or refuse."""
    taken: dict[str, tuple[_Pool, Side, Prompt]] = {}  # by words alone: of no use under another system prompt either
    left_out: list[LeftOut] = []
    for pool in pools:
        kept: list[Unit] = []
        shared: list[tuple[Prompt, _Pool, Side, Prompt]] = []
        for unit in pool.units:
            found = next((prompt for prompt in unit if words_of(prompt) in taken), None)
            if found is None:
                kept.append(unit)
            else:
                shared.append((found, *taken[words_of(found)]))
        if shared and overlap == "refuse":
            _refuse(pool, shared)
        for unit in kept:
            for side, prompt in zip(pool.sides, unit, strict=True):
                taken[words_of(prompt)] = (pool, side, prompt)
        pool.units = kept
        left_out += _told(pool, "elsewhere", [(one, other) for one, _, _, other in shared])
    return left_out


def _refuse(pool: _Pool, shared: Sequence[tuple[Prompt, _Pool, Side, Prompt]]) -> None:
    """Raise where prompts are on two sides, or in the report source and in another one."""
    across = [(prompt, side) for prompt, _, side, _ in shared if side not in pool.sides]
    if across:
        count, (prompt, side) = len(across), across[0]
        raise PromptError(
            f"{count} {'prompt is' if count == 1 else 'prompts are'} in both {side} and {pool.kind}, such as "
            f"{quoted(prompt)}",
            hint="target prompts show the behavior and baseline prompts do not: take each out of one side; the same "
            "prompts under two system prompts need paired = true",
        )
    leaked = [(prompt, other) for prompt, other, _, _ in shared if "report" in other.splits]
    if leaked:
        raise _contaminated(pool, leaked[0][1], len(leaked), leaked[0][0], leaked[0][0])


def _contaminated(pool: _Pool, report: _Pool, count: int, prompt: Prompt, like: Prompt) -> PromptError:
    near = "" if normalised(prompt) == normalised(like) else f", almost the same as {quoted(like)}"
    return PromptError(
        f"{count} {'prompt' if count == 1 else 'prompts'} of the report source {report.name} "
        f"{'is' if count == 1 else 'are'} also in {pool.name}, for {', '.join(pool.splits)}: {quoted(prompt)}{near}",
        hint="figures on prompts that were fitted or chosen on say nothing: take them out, or write overlap = "
        '"drop" in the behavior\'s file to leave them out of all but the report',
    )


class _Chooser:
    """Takes units in order, leaving out near-duplicates of what other splits have taken."""

    def __init__(self, similarity: Similarity, overlap: Overlap) -> None:
        self._similarity = similarity
        self._overlap = overlap
        self._chosen: list[tuple[_Pool, list[Unit], Vectors]] = []

    def choose(self, pool: _Pool, units: Sequence[Unit], count: int) -> tuple[list[Unit], list[LeftOut]]:
        """The first `count` units that are no near-duplicates of others that may end in another split."""
        if not self._similarity.on or not units:
            return list(units[:count]), []
        chosen: list[Unit] = []
        vectors: Vectors | None = None
        near: list[tuple[Prompt, Prompt]] = []
        for start in range(0, len(units), _BLOCK):
            block = units[start : start + _BLOCK]
            rows = self._similarity.vectors([prompt for unit in block for prompt in unit])
            likes = self._elsewhere(pool, block, rows)
            if len(pool.splits) > 1:  # of a pool that only one split uses, near-duplicates may both stay
                self._within(block, rows, likes, chosen, vectors)
            free = [index for index, like in enumerate(likes) if like is None][: count - len(chosen)]
            looked_at = free[-1] + 1 if free and len(chosen) + len(free) == count else len(block)
            near += [(block[index][0], like) for index, like in enumerate(likes[:looked_at]) if like is not None]
            chosen += [block[index] for index in free]
            width = len(pool.sides)
            taken = rows.take([index * width + member for index in free for member in range(width)])
            vectors = taken if vectors is None else vectors.and_then(taken)
            if len(chosen) == count:
                break
        assert vectors is not None
        self._chosen.append((pool, chosen, vectors))
        return chosen, _told(pool, "near", near)

    def _within(
        self,
        block: Sequence[Unit],
        rows: Vectors,
        likes: list[Prompt | None],
        chosen: Sequence[Unit],
        vectors: Vectors | None,
    ) -> None:
        """Fill in for the units of a block which earlier one of their own pool they are like."""
        width = len(block[0])
        earlier = None if vectors is None or not chosen else _by_unit(self._similarity.near(rows, vectors), width)
        among = _by_unit(self._similarity.near(rows, rows), width)
        for index in range(len(block)):
            if likes[index] is None and earlier is not None and earlier[index].any():
                likes[index] = chosen[int(earlier[index].argmax())][0]
            for other in among[index, :index].nonzero()[0]:
                if likes[index] is None and likes[int(other)] is None:
                    likes[index] = block[int(other)][0]

    def _elsewhere(self, pool: _Pool, block: Sequence[Unit], rows: Vectors) -> list[Prompt | None]:
        """For each unit of a block the prompt of another pool that it is like. Raises `PromptError`."""
        width = len(pool.sides)
        likes: list[Prompt | None] = [None] * len(block)
        for other, units, vectors in self._chosen:
            if other.may_hold_near(pool) or not units:
                continue
            prompts = [prompt for unit in units for prompt in unit]
            table = self._similarity.near(rows, vectors)
            for row in table.any(axis=1).nonzero()[0]:
                like = prompts[int(table[row].argmax())]
                index = int(row) // width
                leaks = "report" in other.splits and "report" not in pool.splits
                if leaks and self._overlap == "refuse":
                    raise _contaminated(pool, other, 1, block[index][int(row) % width], like)
                likes[index] = likes[index] or like
        return likes


def _alike(sets: Mapping[Split, PromptSet], similarity: Similarity) -> tuple[str, ...]:
    """What to say of target prompts that are near-duplicates of baseline prompts in other splits.

    They may stay: the two sides of a contrast are meant to be alike, and their difference is what few n-grams show.
    """
    if not similarity.on:
        return ()
    targets = [(split, prompt) for split, prompts in sets.items() for prompt in prompts.target]
    baselines = [(split, prompt) for split, prompts in sets.items() for prompt in prompts.baseline]
    rows, others = (similarity.vectors([prompt for _, prompt in side]) for side in (targets, baselines))
    table = similarity.near(rows, others)
    found = []
    for (split, target), row in zip(targets, table, strict=True):
        elsewhere = [baselines[int(column)] for column in row.nonzero()[0]]
        found += [(target, prompt) for other, prompt in elsewhere if other != split][:1]
    if not found:
        return ()
    return (
        f"{len(found)} target {'prompt is' if len(found) == 1 else 'prompts are'} almost the same as a baseline prompt "
        f"of another split, such as {quoted(found[0][0])} and {quoted(found[0][1])}: where they belong together, "
        "write paired = true",
    )


def _by_unit(table: Any, width: int) -> Any:
    """A table of prompts by prompts, as one of units by units: any prompt of one like any of the other."""
    rows, columns = table.shape
    return table.reshape(rows // width, width, columns // width, width).any(axis=(1, 3))


def _told(pool: _Pool, reason: Reason, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[LeftOut]:
    if not pairs:
        return []
    return [LeftOut(pool.sides[0], pool.splits, reason, len(pairs), str(pairs[0][0]), str(pairs[0][1]))]


def _shares(count: int, pool: _Pool, *, sizes: SplitSizes, near: int = 0) -> dict[Split, int]:
    """How many of `count` units each split gets: its size, or where they do not suffice less, in proportion."""
    wanted = {split: sizes.of(split) for split in pool.splits}
    total = sum(wanted.values())
    if count >= total:
        return wanted
    least = {split: sizes.minimum(split) for split in pool.splits}
    if count < sum(least.values()):
        without = f" without {near} near-duplicates" if near else ""
        pairs = "; prompts that belong together two by two need paired = true" if near and len(pool.sides) == 1 else ""
        raise PromptError(
            f"{pool.name} holds {count} different {pool.kind} prompts{without}, too few for {', '.join(pool.splits)}",
            hint=f"give at least {sum(least.values())}, better {total}{pairs}",
        )
    # What lies above the minima is shared out in proportion; the rest of the division goes to the later splits.
    spare, above = count - sum(least.values()), total - sum(least.values())
    shares: dict[Split, int] = {}
    used = cumulative = 0
    for split in pool.splits:
        cumulative += wanted[split] - least[split]
        extra = cumulative * spare // above - used
        used += extra
        shares[split] = least[split] + extra
    return shares
