"""How much there is to do in each stage of a run, and how long it takes at a given speed: plain arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from excise.evaluation.lengths import DRAWN_PROMPTS, DRAWS
from excise.search.cost.sizes import Sizes
from excise.search.cost.speed import Speed
from excise.search.groundwork import SOURCES
from excise.search.lessons import MOST_TOKENS, WINDOW
from excise.search.losses import ANSWER_WINDOW, BEHAVIOR_TOKENS
from excise.search.methods.polish import BEYOND, RECIPES
from excise.search.polish import Recipe
from excise.search.task import TRIALS

CONTINUED = 32
"""Tokens of the base model's continuations that divergences cover."""

_SWEPT_TARGETS, _SWEPT_BASELINES, _SWEPT_TOKENS = 24, 16, 16
_PLACES = 6  # per position in the sweep
_IN_FULL = 0.6  # share of the trials of a black box that are not given up before anything is generated
_ASKED = 2.5  # times that the fit prompts are asked for answers without the behavior, all told
_CONFIRMED = 9
_PRODUCT = 1.5  # of adding a vector's square to a second moment, in units of `Speed.solve`
_LOADS, _PROOFS = 3.0, 2.0  # what a bake loads and proves again


@dataclass(frozen=True)
class Side:
    """Tokens of the target or of the baseline prompts, and of the responses to them, on average and at most."""

    prompt: float
    longest_prompt: int
    response: float
    longest_response: int


@dataclass(frozen=True)
class Workload:
    """What is asked of a model.

    splits     by name, how many target and how many baseline prompts
    focus      response tokens before the behavior begins
    positions  where directions are looked for
    needed     response tokens that those need
    method, budget, trials, seconds  as of `excise.search`
    bake       whether the edited model is written and proven
    loading, proving  seconds that loading and proving the model took
    batch      rows of so many tokens, with logits at so many positions, that are taken in one pass
    confirming, reporting  target and baseline prompts with responses as long as those stages allow; None: as ever
    """

    splits: Mapping[str, tuple[int, int]]
    target: Side
    baseline: Side
    focus: int
    positions: int
    needed: int
    method: str
    budget: str
    trials: int | None
    seconds: float | None
    bake: bool
    loading: float
    proving: float
    batch: Callable[[int, int], int]
    confirming: tuple[Side, Side] | None = None
    reporting: tuple[Side, Side] | None = None

    @property
    def continued(self) -> int:
        """Tokens of the baseline responses that a polish learns from."""
        return min(self.focus + WINDOW, MOST_TOKENS)

    @property
    def recipe(self) -> Recipe | None:
        """Of the polish; None for another method."""
        return RECIPES[self.budget] if self.method == "polish" else None

    @property
    def edited(self) -> Side:
        """The target prompts once the behavior is gone: responses are as long as others."""
        return _edited(self.target, self.baseline)

    @property
    def confirmed(self) -> Side:
        """The same where the front is confirmed."""
        return self.edited if self.confirming is None else _edited(*self.confirming)

    @property
    def reported(self) -> tuple[Side, Side]:
        """The target prompts in the report, before and after the edit."""
        if self.reporting is None:
            return self.target, self.edited
        return self.reporting[0], _edited(*self.reporting)


class Estimate:
    """Seconds of the stages of one workload."""

    def __init__(self, sizes: Sizes, workload: Workload, speed: Speed) -> None:
        self.sizes = sizes
        self.work = workload
        self.speed = speed

    def stages(self) -> dict[str, float]:
        """Seconds by the name of the stage, for those that have not been when a forecast is made."""
        work = self.work
        targets, _ = work.splits["tune"]
        found = {
            "base": self.written(targets, work.target),
            "find": self._find(),
            "search": self._search() if work.seconds is None else work.seconds,
            "report": self._report(),
        }
        if work.bake:
            found["bake"] = _LOADS * work.loading + _PROOFS * work.proving
        return found

    def read(self, rows: int, tokens: float, *, longest: int, positions: int = 1, compared: bool = False) -> float:
        """Seconds of passes over `rows` rows."""
        if rows == 0:
            return 0.0
        passes = -(-rows // self.work.batch(longest, positions))
        return passes * self.speed.start + rows * (
            tokens * self.speed.token + (positions * self.speed.logit if compared else 0.0)
        )

    def written(self, rows: int, side: Side, *, most: int | None = None) -> float:
        """Seconds of generating responses to `rows` prompts, of at most `most` tokens."""
        if rows == 0:
            return 0.0
        longest = min(side.longest_response, most or side.longest_response)
        batches = -(-rows // self.work.batch(side.longest_prompt + longest, 1))
        steps = batches * longest * self.speed.step + rows * min(side.response, longest) * self.speed.token
        return self.read(rows, side.prompt, longest=side.longest_prompt) + steps

    def _reference(self, rows: int, tokens: int = CONTINUED) -> float:
        """Of the base model's continuations of baseline prompts, and its logits on them."""
        return self.written(rows, self.work.baseline, most=tokens) + self._compared(rows, tokens)

    def _compared(self, rows: int, tokens: int = CONTINUED) -> float:
        side = self.work.baseline
        tokens = min(tokens, side.longest_response)
        mean = min(side.response, tokens)
        longest = side.longest_prompt + tokens
        # fewer logits than the longest response has tokens: those of the mean one
        return self.read(rows, side.prompt + mean, longest=longest, positions=round(mean), compared=True)

    def _prefilled(self, targets: int, baselines: int, tokens: int = CONTINUED) -> float:
        side = self.work.target
        seen = self.read(targets, side.prompt + self.work.focus, longest=side.longest_prompt + self.work.focus)
        return self.speed.making + self.speed.live * (self._compared(baselines, tokens) + seen)

    def _find(self) -> float:
        work = self.work
        total = 0.0
        for rows, side in zip(work.splits["fit"], (work.target, work.baseline), strict=True):
            needed = min(work.needed, side.longest_response)
            if needed:
                total += self.written(rows, side, most=needed)
            total += self.read(rows, side.prompt + needed, longest=side.longest_prompt + needed)
        return total

    def _search(self) -> float:
        work = self.work
        targets, baselines = work.splits["tune"]
        unseen, others = work.splits["select"]
        trial = self._prefilled(targets, baselines)
        live = self.speed.live
        generated = live * self.written(targets, work.edited)
        again = live * (self._compared(others) + 2 * self.written(unseen, work.confirmed))  # once more for the reserve
        confirmed = self._reference(others) + _CONFIRMED * again
        prepared = self._reference(baselines) + self.written(targets, work.target) + self._sweep()
        if work.recipe is None:
            trials = TRIALS[work.budget] if work.trials is None else work.trials
            return prepared + trials * (trial + _IN_FULL * generated) + confirmed
        made = SOURCES + len(work.recipe.phases)
        trials = made + BEYOND[work.budget] if work.trials is None else work.trials
        first = min(made, trials)
        full = first + _IN_FULL * (trials - first)
        phases = max(first - SOURCES, 0)
        steps = sum(phase.steps for phase in work.recipe.phases[:phases])
        learned = self._lessons() + self._statistics()
        return prepared + learned + steps * self._step() + trials * trial + full * generated + confirmed

    def _sweep(self) -> float:
        targets, baselines = (min(pair) for pair in zip(self.work.splits["tune"], _SWEPT, strict=True))
        places = 1 + self.work.positions * _PLACES
        return places * self._prefilled(targets, baselines, _SWEPT_TOKENS) + self._reference(baselines, _SWEPT_TOKENS)

    def _lessons(self) -> float:
        """How the base model answers, how responses begin without the behavior, and whole ones without it."""
        work = self.work
        targets, baselines = work.splits["fit"]
        opened = self.speed.live * self.written(targets, work.edited, most=work.focus + WINDOW // 2)
        asked = _ASKED * self.speed.live * self.written(targets, work.edited)
        return self.written(targets, work.target) + self._reference(baselines, work.continued) + opened + asked

    def _statistics(self) -> float:
        """What writers read, and the linear algebra with it: a triangle, and an inverse for each closed form."""
        work = self.work
        targets, baselines = work.splits["fit"]
        tokens = work.baseline.prompt + min(work.continued, work.baseline.response)
        longest = work.baseline.longest_prompt + work.continued
        passes = sum(self.read(rows, tokens, longest=longest) for rows in (baselines, targets, targets))
        batches = -(-baselines // 32) + -(-2 * targets // 32)
        widths = [port.width for port in self.sizes.ports if port.measured]
        squares, cubes = sum(width**2 for width in widths), sum(width**3 for width in widths)
        products = _PRODUCT * self.speed.solve * squares * (baselines * tokens + 2 * targets * (WINDOW / 2))
        solved = self.speed.solve * cubes * (SOURCES + 2)
        return passes + products + batches * squares * self.speed.add + solved

    def _step(self) -> float:
        """Of one step of a polish: rows of three kinds, with gradients."""
        work = self.work
        assert work.recipe is not None
        rows = work.recipe.rows
        answer = min(work.edited.response, work.focus + WINDOW)
        begun = min(work.target.response, BEHAVIOR_TOKENS)
        kept = min(work.baseline.response, work.continued)
        counted = min(answer, ANSWER_WINDOW)
        lengths = (
            work.target.prompt + answer,
            (work.target.prompt + work.focus + begun) / 2,  # half as many rows
            work.baseline.prompt + kept,
        )
        logits = (counted, begun / 2, kept)
        tokens, compared = rows * sum(lengths), rows * sum(logits)
        plain = len(lengths) * self.speed.start + tokens * self.speed.token + compared * self.speed.logit
        widths = sum(port.width**2 for port in self.sizes.ports if port.measured)
        whitened = len(lengths) * 2 * self.speed.solve * widths  # the factors, and their gradients, for each pass
        return self.speed.gradient * plain + whitened

    def _report(self) -> float:
        """Before and after on both sides, then controls: two with shorter responses, two more on fewer prompts."""
        work = self.work
        targets, baselines = work.splits["report"]
        shown, gone = work.reported
        compared, ordinary = self._compared(baselines), self.written(baselines, work.baseline)
        before = compared + self.written(targets, shown) + ordinary
        after = compared + self.written(targets, gone) + ordinary
        controls = 2 * (compared + self.written(targets, work.edited))
        some = [min(count, DRAWN_PROMPTS) for count in (targets, baselines)]
        draws = (DRAWS - 1) * (self.written(some[0], work.edited) + self._compared(some[1]))
        return self._reference(baselines) + before + self.speed.live * (after + controls + draws)


def _edited(target: Side, baseline: Side) -> Side:
    longest = max(target.longest_response, baseline.longest_response)
    return Side(target.prompt, target.longest_prompt, max(target.response, baseline.response), longest)


_SWEPT = (_SWEPT_TARGETS, _SWEPT_BASELINES)
