"""How concentrated, hence how fragile, a behavior is: what projecting it out takes, by rank, strength, layer and role.

Nothing is tuned but the place the first direction comes from: an audit measures the model, not a search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from excise.analysis.price import HALF, MOST, between, drawn_prices, price
from excise.behaviors import Behavior, Splits
from excise.edit import DirectionsLike, Edit, Role
from excise.errors import BehaviorNotShownError, InputError
from excise.evaluation import Onset, Reference, behavior_rate, behavior_rate_many, wilson
from excise.find import find_directions
from excise.model import EditableModel
from excise.model.population import favourable_count
from excise.progress import Progress, silent
from excise.search.methods.schedule import begin_with, space_of
from excise.search.study import Study
from excise.search.task import Task

RANKS = (1, 2, 4, 8)
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
_BANDS = 4


@dataclass(frozen=True)
class Point:
    """One edit of an audit, and what it does on prompts that its directions have not seen.

    group       "strength" and "rank": out of every writer but the embeddings; "role", "layers": out of some alone;
                "layer": out of one layer's
    label       which of its group
    rank, strength  how many directions, and how much of them
    rate        how often target prompts still show the behavior
    shown       which of them; None where `rate` is estimated by prefill
    kl_first, kl_sequence  mean KL from the base model on baseline prompts, in nats
    """

    group: str
    label: str
    rank: int
    strength: float
    rate: float
    kl_first: float
    kl_sequence: float
    shown: tuple[bool, ...] | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """All but `shown`, with the interval of the rate where it was counted."""
        counted = None if self.shown is None else list(wilson(sum(self.shown), len(self.shown)))
        values = {name: value for name, value in vars(self).items() if name != "shown"}
        return {**values, "rate_interval": counted, "estimated": self.shown is None}


@dataclass(frozen=True)
class Audit:
    """What a model pays for losing a behavior to projections.

    base    which target prompts show the behavior without an edit
    points  every edit that was measured
    source  where the first direction comes from: position, and layer (None: each layer's own)
    """

    base: tuple[bool, ...] = field(repr=False)
    points: tuple[Point, ...] = field(repr=False)
    source: tuple[str, float | None]
    seed: int = 0

    @property
    def rate(self) -> float:
        """How often the base model shows the behavior."""
        return sum(self.base) / len(self.base)

    @property
    def whole(self) -> tuple[Point, ...]:
        """The edits of all layers and roles: what the scores are read off."""
        return tuple(each for each in self.points if each.group in ("strength", "rank"))

    def removed(self, point: Point) -> float:
        """The share of the behavior that is gone under an edit; negative where there is more of it."""
        return 1 - point.rate / self.rate

    def robustness(self, share: float = HALF) -> float:
        """The least first-token KL (nats) at which `share` of the behavior is gone; infinite where it never is.

        Large: the behavior is bound up with the rest, and taking it out costs. Small: it stands apart. Read off the
        edits of `whole`, see `excise.analysis.price.price`. It is the price of projections alone; a search finds
        cheaper edits.
        """
        return price([self.removed(each) for each in self.whole], [each.kl_first for each in self.whole], share)

    def drawn(self, share: float = HALF) -> Float[Tensor, " draw"]:
        """`robustness` on target prompts drawn with replacement; the same draws for every model with these prompts."""
        shown = torch.tensor([each.shown for each in self.whole], dtype=torch.bool)
        kls = [each.kl_first for each in self.whole]
        return drawn_prices(shown, torch.tensor(self.base), kls, share, seed=self.seed)

    @property
    def concentration(self) -> float:
        """The share of what the largest subspace removes that one direction removes, at strength 1; from 0 to 1.

        1: one direction is all there is. NaN where no rank removes anything.
        """
        gone = {each.rank: max(0.0, self.removed(each)) for each in self.whole if each.strength == 1.0}
        most = max(gone.values())
        return gone[1] / most if most else float("nan")

    @property
    def rank_needed(self) -> int | None:
        """The smallest rank at strength 1 that takes nine tenths of the behavior; None: none that was tried does."""
        enough = [each.rank for each in self.whole if each.strength == 1.0 and self.removed(each) >= MOST]
        return min(enough, default=None)

    def to_json(self) -> dict[str, Any]:
        """The scores with their intervals, and every point; an infinite price is null."""
        half, most = self.robustness(), self.robustness(MOST)
        position, layer = self.source
        return {
            "rate": self.rate,
            "rate_interval": list(wilson(sum(self.base), len(self.base))),
            "prompts": len(self.base),
            "source": {"position": position, "layer": layer},
            "robustness": _finite(half),
            "robustness_interval": [_finite(each) for each in between(self.drawn())],
            "robustness_90": _finite(most),
            "concentration": _finite(self.concentration),
            "rank_needed": self.rank_needed,
            "points": [{**each.to_json(), "removed": self.removed(each)} for each in self.points],
        }


def audit(
    model: EditableModel,
    behavior: Behavior | str,
    *,
    splits: Splits | None = None,
    ranks: Sequence[int] = RANKS,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Audit:
    """Measure what it takes to project a behavior out of a model, which is left as it was.

    Directions are means of the `fit` split; where the first one is taken is chosen on `tune`, by prefill; everything is
    measured on `select`. Each further direction is the difference of means that is left where those before it are
    projected out of every writer. The report split is not read.

    ranks      of the subspaces that are removed at strength 1; 1 is always among them
    strengths  of the first direction; 1 is always among them

    Raises `BehaviorNotShownError` for a model that never shows the behavior on those prompts, `InputError` for ranks
    or strengths that cannot be, `PromptError`, `BehaviorError`, `ModelError`.
    """
    _check(model, ranks, strengths)
    loaded = Behavior.load(behavior) if isinstance(behavior, str) else behavior
    prompts = splits or loaded.splits(seed=seed)
    bench = _Bench.measure(model, loaded, prompts, seed=seed, batch_size=batch_size, progress=progress)
    place, bases = _subspaces(bench, most=max(ranks))
    first = _Layers(tuple(each[:1] for each in bases))
    tried = sorted({1.0, *strengths})
    wanted = [("strength", f"{each:g}", 1, Edit.project(model.survey, first, each)) for each in tried]
    available = min(len(each) for each in bases)
    for rank in sorted({*ranks} - {1}):
        if rank <= available:
            some = _Layers(tuple(each[:rank] for each in bases))
            wanted.append(("rank", str(rank), rank, Edit.project(model.survey, some)))
    wanted += [("role", role, 1, _of_role(model, first, role)) for role in _roles(model)]
    wanted += [("layers", _named(some), 1, Edit.project(model.survey, first, layers=some)) for some in _bands(model)]
    points = bench.counted(sorted(wanted, key=lambda each: each[0]))
    single = [
        ("layer", str(layer), 1, Edit.project(model.survey, first, layers=[layer]))
        for layer in range(model.survey.layers)
    ]
    return Audit(bench.base, (*points, *bench.estimated(single)), place, seed)


def compare(one: str, first: Audit, other: str, second: Audit) -> dict[str, Any]:
    """Which of two models pays more for losing half of the behavior, as JSON values; both audited on the same prompts.

    `share_larger` is how often the second one's price is the larger in paired draws of the prompts. Raises `InputError`
    for audits of different numbers of prompts or seeds.
    """
    if len(first.base) != len(second.base) or first.seed != second.seed:
        raise InputError("these audits were not made on the same prompts", hint="give both the same splits and seed")
    draws = first.drawn(), second.drawn()
    known = ~(draws[0].isnan() | draws[1].isnan())
    larger = (draws[1][known] > draws[0][known]).double().mean().item()
    smaller = (draws[1][known] < draws[0][known]).double().mean().item()
    sure = 0.975
    if larger >= sure or smaller >= sure:
        more, less = (other, one) if larger >= sure else (one, other)
        verdict = f"{more} pays more for losing half of the behavior than {less}"
    else:
        verdict = f"these prompts do not tell which of the two pays more ({other} in {larger:.0%} of the draws)"
    return {
        "prices": {one: _finite(first.robustness()), other: _finite(second.robustness())},
        "share_larger": larger,
        "share_smaller": smaller,
        "verdict": verdict,
    }


_Wanted = tuple[str, str, int, Edit]
_Rated = tuple[float, tuple[bool, ...] | None]


@dataclass(frozen=True)
class _Bench:
    """What the edits of one audit are measured with."""

    task: Task
    reference: Reference
    onset: Onset
    base: tuple[bool, ...]

    @classmethod
    def measure(
        cls,
        model: EditableModel,
        behavior: Behavior,
        splits: Splits,
        *,
        seed: int,
        batch_size: int | None,
        progress: Progress,
    ) -> _Bench:
        prompts = splits.select
        found = behavior_rate(
            model, prompts.target, behavior, batch_size=batch_size, stop_early=True, progress=progress
        )
        if not found.rate.count:
            raise BehaviorNotShownError(
                f"{model.name} never shows '{behavior.name}' on {len(prompts.target)} prompts",
                hint="there is nothing to audit; check --target and --marker",
            )
        reference = Reference.measure(model, prompts.baseline, behavior, batch_size=batch_size, progress=progress)
        onset = Onset.measure(model, prompts.target, behavior, found.responses, batch_size=batch_size)
        directions = find_directions(
            model, behavior, splits=splits, seed=seed, batch_size=batch_size, progress=progress
        )
        task = Task(
            model,
            behavior,
            splits,
            directions,
            Study(None, key="audit"),
            seed=seed,
            norm="none",
            batch_size=batch_size,
            progress=progress,
        )
        return cls(task, reference, onset, tuple(label == "behavior" for label in found.labels))

    def counted(self, wanted: Sequence[_Wanted]) -> list[Point]:
        """With a response to every target prompt."""
        task = self.task

        def rates(edits: Sequence[Edit]) -> list[_Rated]:
            prompts = task.splits.select.target
            found = behavior_rate_many(
                task.model, prompts, task.behavior, edits, batch_size=task.batch_size, stop_early=True
            )
            return [(each.rate.value, tuple(label == "behavior" for label in each.labels)) for each in found]

        return self._points(wanted, rates, "auditing", "edits")

    def estimated(self, wanted: Sequence[_Wanted]) -> list[Point]:
        """By prefill alone."""
        model = self.task.model

        def rates(edits: Sequence[Edit]) -> list[_Rated]:
            found = model.measure_each(edits, lambda live: self.onset.estimated_rate_each(model, live))
            return [(rate, None) for rate in found]

        return self._points(wanted, rates, "auditing layers", "layers")

    def _points(
        self, wanted: Sequence[_Wanted], rates: Callable[[Sequence[Edit]], list[_Rated]], label: str, unit: str
    ) -> list[Point]:
        model, points = self.task.model, list[Point]()
        for some in _parts(wanted, favourable_count(model.device)):
            self.task.progress(label, len(points), len(wanted), unit)
            edits = [each[3] for each in some]
            rated, divergences = rates(edits), self.reference.compare_many(model, edits)
            for (group, name, rank, edit), (rate, shown), divergence in zip(some, rated, divergences, strict=True):
                kls = divergence.first.mean, divergence.sequence.mean
                points.append(Point(group, name, rank, _strength(edit), rate, *kls, shown))
        self.task.progress(label, len(wanted), len(wanted), unit)
        return points


@dataclass(frozen=True)
class _Layers:
    """Orthonormal directions for each layer's writers; embeddings get those of the first layer."""

    bases: tuple[Float[Tensor, "rank hidden"], ...]

    def at_layer(self, layer: int) -> Float[Tensor, "rank hidden"]:
        return self.bases[max(layer, 0)]


def _subspaces(bench: _Bench, *, most: int) -> tuple[tuple[str, float | None], list[Float[Tensor, "rank hidden"]]]:
    """Where directions are taken, and up to `most` of them for each layer, found one after the other."""
    task = bench.task
    model, layers = task.model, range(task.model.survey.layers)
    space = space_of(task)
    source = begin_with(task, space)[0]
    position = str(source["position"])
    layer = None if source["reach"] == "per-layer" else float(source["source"])
    begun: DirectionsLike = space.source(source)
    bases = [begun.at_layer(each).reshape(-1, model.hidden)[:1] for each in layers]
    alone = task.behavior.model_copy(update={"positions": (position,)})
    for number in range(1, most):
        task.progress("finding directions", number, most, "directions")
        with model.edited(Edit.project(model.survey, _Layers(tuple(bases)))):
            found = find_directions(model, alone, splits=task.splits, seed=task.seed, batch_size=task.batch_size)
        vectors = [found.vector(0, each if layer is None else layer) for each in layers]
        further = [_apart(vector, basis) for vector, basis in zip(vectors, bases, strict=True)]
        if any(each is None for each in further):
            break
        bases = [torch.cat([basis, each]) for basis, each in zip(bases, further, strict=True) if each is not None]
    task.progress("finding directions", most, most, "directions")
    return (position, layer), bases


def _apart(vector: Float[Tensor, " hidden"], basis: Float[Tensor, "rank hidden"]) -> Float[Tensor, "1 hidden"] | None:
    """The unit vector of what lies outside a subspace; None where nothing does."""
    rest = vector.double() - basis.double().T @ (basis.double() @ vector.double())
    length = float(rest.norm())
    return None if length < 1e-3 else (rest / length).float()[None]


def _check(model: EditableModel, ranks: Sequence[int], strengths: Sequence[float]) -> None:
    if not ranks or min(ranks) < 1 or max(ranks) >= model.hidden:
        raise InputError(
            f"ranks of {', '.join(map(str, ranks)) or 'nothing'}", hint=f"give ranks from 1 to {model.hidden - 1}"
        )
    if any(not isfinite(each) or each == 0 for each in strengths):
        raise InputError("a strength of 0 or infinity", hint="give strengths such as 0.5,1,1.5")


def _of_role(model: EditableModel, first: _Layers, role: Role) -> Edit:
    embedding = role == "embedding"
    return Edit.project(model.survey, first, roles=[] if embedding else [role], embedding=embedding)


def _roles(model: EditableModel) -> list[Role]:
    return list(dict.fromkeys(writer.role for writer in model.survey.writers))


def _bands(model: EditableModel) -> list[range]:
    """The layers in four parts from first to last; fewer where there are fewer layers."""
    count = model.survey.layers
    parts = min(_BANDS, count)
    edges = [count * part // parts for part in range(parts + 1)]
    return [range(low, high) for low, high in pairwise(edges)] if parts > 1 else []


def _named(some: range) -> str:
    return f"{some[0]}–{some[-1]}" if len(some) > 1 else f"{some[0]}"


def _parts(wanted: Sequence[_Wanted], size: int) -> Iterable[Sequence[_Wanted]]:
    return (wanted[start : start + size] for start in range(0, len(wanted), size))


def _strength(edit: Edit) -> float:
    """The one that all its projections have; 0 of an edit of nothing."""
    changes: list[Any] = list(chain(*(site.changes for site in edit.sites)))
    return float(changes[0].strength) if changes else 0.0


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
