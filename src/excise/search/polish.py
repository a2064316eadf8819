"""The polish: tens of steps of gradient descent on the factors of an edit, nothing else of the model.

Weights stay frozen; gradients flow through activations alone, so any backend that can differentiate its products will
do, quantised ones included. A step takes some rows without the behavior and some baseline rows,

    loss = answer + behavior + κ (divergence + tail of the divergence)

(see `excise.search.losses`; the tail is the mean of the worst rows, CVaR). Phases may differ in κ, and between two of
them the answers may become more. The edit at the end of each phase is a point of the front.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from excise.activations.port_statistics import Exchange
from excise.edit import Edit
from excise.errors import ModelError
from excise.model import EditableModel
from excise.model.forward import batches_by_length, padding_is_exact
from excise.model.ports import length_of_weight
from excise.model.precision import is_out_of_memory
from excise.progress import Progress, silent
from excise.runs import writing
from excise.search.cost.memory import SMALL
from excise.search.factors import Factors
from excise.search.gradients import frozen, recomputed
from excise.search.lessons import Lessons
from excise.search.losses import ANSWER_WINDOW, SEQUENCE_WEIGHT, answer_loss, behavior_loss, divergences

LARGEST_CHANGE = 0.3
"""Most that a writer may change: ‖ΔW‖/‖W‖ (Frobenius)."""

TAIL_SHARE = 1 / 6
"""Share of baseline rows that the tail of the divergence is."""

UNLIKELY = 0.7
"""A loss of the behavior below which it counts as gone from the fit split: its first tokens have e⁻⁴ between them."""

HURRY = 3.0
"""How much longer steps are, in a phase that should have been over."""

_RECENT, _SETTLED, _SEEN = 10, 4, 120
_FEWEST = 4


@dataclass(frozen=True)
class Phase:
    """Some steps at one weight of preserving.

    most  where the behavior is still likely after `steps`, go on up to so many, in longer steps
    """

    preserve: float
    steps: int
    most: int = 0


@dataclass(frozen=True)
class Recipe:
    """How to polish.

    phases     in order
    rows       of each kind in a step
    step       length of a step of the right factors, relative to their own length
    turn       length of a step of the left factors, which have length 1
    tail       weight of the worst sixth of the rows in the divergence
    """

    phases: tuple[Phase, ...]
    rows: int = 12
    step: float = 0.02
    turn: float = 0.002
    tail: float = 0.25

    @property
    def steps(self) -> int:
        """Of all phases."""
        return sum(phase.steps for phase in self.phases)


@dataclass(frozen=True)
class Snapshot:
    """The edit after some steps.

    step        how many
    preserve    κ of the phase that it ends
    behavior, first, sequence  means of the last steps' losses on the fit split
    """

    step: int
    preserve: float
    edit: Edit
    behavior: float
    first: float
    sequence: float


@dataclass(frozen=True)
class _End:
    """Where a phase ended."""

    step: int
    factors: dict[str, Tensor]
    means: list[float]


_Losses = tuple[float, list[tuple[float, float]]]


class Polish:
    """One polish under way.

    answers     responses without the behavior
    checkpoint  a file that the state is kept in after every step; None keeps it nowhere
    deadlines   for each phase the clock (`time.monotonic`) at which it ends, whatever its steps; None: by its steps
    micro       rows in one pass: fewer need less memory, and give the same step
    recompute   compute activations again for gradients: slower, and far less memory

    Where memory runs out during a step, it is done again with fewer rows in one pass, and then with `recompute`; what
    is left of both holds from then on.
    """

    def __init__(
        self,
        model: EditableModel,
        factors: Factors,
        lessons: Lessons,
        answers: Sequence[Exchange],
        recipe: Recipe,
        *,
        seed: int = 0,
        deadlines: Sequence[float] | None = None,
        micro: int = 12,
        recompute: bool = False,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> None:
        self.model = model
        self.factors = factors
        self.lessons = lessons
        self.answers = list(answers)
        self.recipe = recipe
        self.seed = seed
        self.deadlines = deadlines
        self.micro = micro
        self.recompute = recompute
        self.progress = progress
        self.step = 0
        self._file = checkpoint
        self._recent: list[list[float]] = []
        self._seen: list[float] = []
        self._ends: list[_End] = []
        self._optimizer = _optimizer(factors, recipe)
        self._limits = _limits(factors)
        self._load()

    def run(self) -> Iterator[Snapshot]:
        """A snapshot at the end of each phase; what an earlier call did is given again without being done again."""
        with frozen(self.model.hf_model):
            for number, phase in enumerate(self.recipe.phases):
                begun = self._ends[-1].step if self._ends else 0
                while number == len(self._ends):
                    self.progress("polishing", self.step, max(self.step, self.recipe.steps), "steps")
                    self._advance(phase, hurry=self.step - begun >= phase.steps)
                    if self._is_over(number, self.step - begun):
                        self._ends.append(self._end())
                    self._save()
                yield self._snapshot(number, phase)
        self.progress("polishing", self.step, self.step, "steps")

    def _advance(self, phase: Phase, *, hurry: bool) -> None:
        threshold = self._tail_begins()
        while True:
            losses = self._unless_out_of_memory(partial(self._gradients, phase, threshold))
            if losses is not None:
                break
        begun, found = losses
        lengths = [group["lr"] for group in self._optimizer.param_groups]
        for group in self._optimizer.param_groups:
            group["lr"] *= HURRY if hurry else 1.0
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        for group, length in zip(self._optimizer.param_groups, lengths, strict=True):
            group["lr"] = length
        _cap(self.factors, self._limits)
        self._seen = [*self._seen, *(first + SEQUENCE_WEIGHT * sequence for first, sequence in found)][-_SEEN:]
        first, sequence = (sum(column) / len(found) for column in zip(*found, strict=True))
        self._recent = [*self._recent, [begun, first, sequence]][-_RECENT:]
        self.step += 1

    def _gradients(self, phase: Phase, threshold: float) -> _Losses:
        """Gradients of one step, and its losses: of the behavior, and of each baseline row the two divergences."""
        begun = self._remove()
        found: list[tuple[float, float]] = []

        def preserved(indices: list[int]) -> Tensor:
            first, sequence = divergences(self.model, self.lessons.reference, indices)
            found.extend(zip(first.tolist(), sequence.tolist(), strict=True))
            both = first + SEQUENCE_WEIGHT * sequence
            return phase.preserve * (both + self.recipe.tail / TAIL_SHARE * (both - threshold).clamp(min=0.0))

        lengths = [len(row.prompt) + len(row.response) for row in self.lessons.baseline]
        self._descend(self._draw(lengths, self.recipe.rows, "baseline"), preserved)
        return begun, found

    def _unless_out_of_memory(self, gradients: Callable[[], _Losses]) -> _Losses | None:
        """None where memory ran out: no gradient is left of the step then, and it may be done again with less."""
        try:
            with recomputed(self.model.layers) if self.recompute else nullcontext():
                return gradients()
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            self._optimizer.zero_grad(set_to_none=True)
            if not self._take_less():
                raise ModelError(
                    "not even one row of the polish fits in memory beside the model",
                    hint="use shorter prompts, a smaller dtype, `--device-map auto`, or `--method schedule`",
                ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _take_less(self) -> bool:
        """Halve what one pass takes, down to `SMALL` rows; then recompute; then one row. False: nothing is left."""
        largest = min(self.micro, self.recipe.rows)  # more rows than a step has are no more memory
        if largest > SMALL:
            self.micro = max(largest // 2, SMALL)
        elif not self.recompute:
            self.recompute = True
        elif largest > 1:
            self.micro = 1
        else:
            return False
        return True

    def _remove(self) -> float:
        """Descend on answers and on how the behavior begins; returns the mean loss of the latter."""
        model, answers, shown = self.model, self.answers, self.lessons.target
        self._descend(
            self._draw([len(row.prompt) + len(row.response) for row in answers], self.recipe.rows, "answers"),
            lambda indices: answer_loss(model, [answers[index] for index in indices], window=ANSWER_WINDOW),
        )
        return self._descend(
            self._draw([len(row.prompt) + row.focus for row in shown], (self.recipe.rows + 1) // 2, "behavior"),
            lambda indices: behavior_loss(model, [shown[index] for index in indices]),
        )

    def _is_over(self, number: int, steps: int) -> bool:
        phase = self.recipe.phases[number]
        if self.deadlines is not None:
            return steps >= _FEWEST and time.monotonic() >= self.deadlines[number]
        if steps < phase.steps:
            return False
        shown = sum(losses[0] for losses in self._recent[-_SETTLED:]) / _SETTLED
        return shown <= UNLIKELY or steps >= phase.most

    def _end(self) -> _End:
        means = [sum(column) / len(column) for column in zip(*self._recent, strict=True)]
        return _End(self.step, {name: tensor.clone() for name, tensor in self.factors.state().items()}, means)

    def _snapshot(self, number: int, phase: Phase) -> Snapshot:
        now = {name: tensor.clone() for name, tensor in self.factors.state().items()}
        end = self._ends[number]
        self.factors.restore(end.factors)
        snapshot = Snapshot(end.step, phase.preserve, self.factors.edit(), *end.means)
        self.factors.restore(now)
        return snapshot

    def _descend(self, groups: list[list[int]], loss: Callable[[list[int]], Tensor]) -> float:
        """Add the gradient of the mean loss over all rows; returns that mean."""
        total = sum(len(group) for group in groups)
        value = 0.0
        for group in groups:
            with self.factors.live():  # also while activations are computed again
                mean = loss(group).sum() / total
                mean.backward()
            value += float(mean.detach())
        return value

    def _tail_begins(self) -> float:
        """The tail's threshold η, from recent rows: CVaR = η + E[(x − η)₊]/share (Rockafellar and Uryasev 2000)."""
        if not self._seen:
            return float("inf")
        return sorted(self._seen)[int((1 - TAIL_SHARE) * len(self._seen))]

    def _draw(self, lengths: Sequence[int], rows: int, kind: str) -> list[list[int]]:
        """Which rows this step takes, in groups for one pass each: of similar length, every row once in a while.

        A pure function of the seed and the step, so that a polish goes on as if it had never been stopped.
        """
        rows = min(rows, len(lengths))
        if rows == 0:
            return []
        order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
        rounds, place = divmod(self.step * rows, max(len(order), 1))
        generator = random.Random(f"{self.seed}/{kind}/{rounds}")
        starts = list(range(0, len(order), rows))
        generator.shuffle(starts)
        start = min(starts[place // rows % len(starts)], max(len(order) - rows, 0))
        chosen = order[start : start + rows]
        equal = not padding_is_exact(self.model)
        groups = batches_by_length([range(lengths[index]) for index in chosen], batch_size=self.micro, equal=equal)
        return [[chosen[place] for place in group] for group in groups]

    def _save(self) -> None:
        if self._file is None:
            return
        state = {
            "ends": [vars(end) for end in self._ends],
            "step": self.step,
            "factors": self.factors.state(),
            "optimizer": self._optimizer.state_dict(),
            "recent": self._recent,
            "seen": self._seen,
            "micro": self.micro,
            "recompute": self.recompute,
        }
        with writing(self._file) as scratch:
            torch.save(state, scratch)

    def _load(self) -> None:
        if self._file is None or not self._file.is_file():
            return
        state = torch.load(self._file, weights_only=True)
        self.factors.restore(state["factors"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step, self._recent, self._seen = state["step"], state["recent"], state["seen"]
        self._ends = [_End(**end) for end in state["ends"]]
        # divided as before, so that rounding is the same, and memory that ran out does not run out again
        self.micro, self.recompute = state.get("micro", self.micro), state.get("recompute", self.recompute)


def _optimizer(factors: Factors, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam, whose steps at each port are as long as the port's factors and the model's usual ones ask for."""
    usual = sum(factor.scale for factor in factors.factors) / max(len(factors.factors), 1)
    groups = []
    for factor in factors.factors:
        factor.left.requires_grad_(True)
        factor.right.requires_grad_(True)
        length = recipe.step * (factor.scale + usual) / 2
        groups.append({"params": [factor.right], "lr": length / math.sqrt(factor.right.shape[-1])})
        groups.append({"params": [factor.left], "lr": recipe.turn / math.sqrt(factor.left.shape[-1] / 576)})
    return torch.optim.Adam(groups, betas=(0.9, 0.95))


def _limits(factors: Factors) -> list[float]:
    """Most that ‖A‖ may be at each port that reads its input; the others are not limited."""
    model = factors.model.hf_model
    return [
        LARGEST_CHANGE * length_of_weight(model, factor.port, hidden=factor.left.shape[-1])
        if factor.port.reads == "input"
        else math.inf
        for factor in factors.factors
    ]


def _cap(factors: Factors, limits: Sequence[float]) -> None:
    """Shorten what has become longer than its limit."""
    with torch.no_grad():
        for factor, limit in zip(factors.factors, limits, strict=True):
            if limit < math.inf:
                left, right = factor.rows()
                change = float((left.T @ right).norm()) if len(left) > 1 else float(right.norm())
                if change > limit:
                    factor.right.mul_(limit / change)
