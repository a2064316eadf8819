"""What a run is going to need: the formulas of `memory` and `work`, for a model, its prompts and its speed here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from excise.activations.positions import RESPONSE_TOKENS, response_tokens_needed
from excise.behaviors import Behavior, PromptSet, Split, Splits
from excise.behaviors.splits import SPLITS
from excise.errors import ExciseError
from excise.evaluation import lengths
from excise.evaluation.rate import decided_by
from excise.model import EditableModel
from excise.model.forward import rows_that_fit
from excise.model.onset import onset_token
from excise.model.precision import LARGE
from excise.search.cost import memory
from excise.search.cost.free import free_memory, peak_memory, peak_resident, resident, taken_memory
from excise.search.cost.sizes import Sizes, sizes_of
from excise.search.cost.speed import Sampled, measure
from excise.search.cost.work import CONTINUED, Estimate, Side, Workload
from excise.search.lessons import WINDOW

UNFORESEEN = (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, OSError, ExciseError)
"""Errors after which a run goes on without a forecast."""

_SAMPLE = 24
"""Prompts of each side that are rendered to learn how long they are."""

_SPARE = 280 << 20  # what PyTorch loads and compiles when it is first used, and keeps; the report and its libraries


@dataclass(frozen=True)
class Forecast:
    """About what a run needs.

    bytes       at most at a time where the model computes: of GPU memory, or of main memory
    host_bytes  of main memory
    seconds     in all, what was before the forecast included
    stages      of those, by stage
    moments     bytes where the model computes at the moments that may be the largest
    """

    bytes: int
    host_bytes: int
    seconds: float
    stages: Mapping[str, float]
    moments: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "bytes": self.bytes,
            "host_bytes": self.host_bytes,
            "seconds": round(self.seconds, 2),
            "stages": {name: round(seconds, 2) for name, seconds in self.stages.items()},
            "moments": dict(self.moments),
        }


@dataclass(frozen=True)
class Moment:
    """What lies in memory at a moment beside what does now: where the model computes, and elsewhere in main memory."""

    device: int
    host: int = 0


def forecast(
    model: EditableModel,
    behavior: Behavior,
    splits: Splits,
    *,
    method: str = "polish",
    budget: str = "standard",
    trials: int | None = None,
    seconds: float | None = None,
    max_tokens: int | None = None,
    report_tokens: int | None = None,
    bake: bool = True,
    spent: Mapping[str, float] | None = None,
    stages: Sequence[str] | None = None,
) -> Forecast:
    """Forecast a run of a model that is loaded and proven, and has no edit live; takes about two seconds.

    report_tokens  of a response to a target prompt in the report; None: as ever
    spent   seconds of the stages that have been: "load" and "prove" tell how long the bake's own will take
    stages  which of them are to come; None: all
    """
    sizes, before = sizes_of(model), dict(spent or {})
    longest = max_tokens or behavior.max_tokens
    rows = {side: _rendered(model, behavior, splits, side) for side in ("target", "baseline")}
    speed, shown, answers = measure(
        model,
        rows["target"][1:],
        rows["baseline"][1:],
        max_tokens=longest,
        stop=decided_by(behavior, model.template),
    )
    sampled = {"target": shown, "baseline": answers}
    focus = _focus(model, behavior, shown)
    onset = "onset" in behavior.positions

    def sides(most: int) -> tuple[Side, Side]:
        target, baseline = (_side(rows[side], sampled[side], most) for side in ("target", "baseline"))
        return target, baseline

    workload = Workload(
        splits={name: _counted(name, splits[name]) for name in SPLITS},
        target=_side(rows["target"], sampled["target"], longest),
        baseline=_side(rows["baseline"], sampled["baseline"], longest),
        focus=focus,
        positions=len(behavior.positions),
        needed=longest if onset else response_tokens_needed(behavior.positions, most=RESPONSE_TOKENS),
        method=method,
        budget=budget,
        trials=trials,
        seconds=seconds,
        bake=bake,
        loading=before.get("load", 0.0),
        proving=before.get("prove", 0.0),
        batch=lambda tokens, positions: rows_that_fit(model, tokens=tokens, positions=positions),
        confirming=sides(lengths.confirm_tokens(behavior, max_tokens)),
        reporting=sides(lengths.report_tokens(behavior, report_tokens)),
    )
    wanted = Estimate(sizes, workload, speed).stages()
    wanted = {name: taken for name, taken in wanted.items() if stages is None or name in stages}
    return _forecast(model.device, moments(sizes, workload, free=_allowed(model.device)), {**before, **wanted}, wanted)


def _forecast(
    device: torch.device, found: Mapping[str, Moment], every: Mapping[str, float], wanted: Mapping[str, float]
) -> Forecast:
    found = {name: moment for name, moment in found.items() if name != "bake" or "bake" in wanted}
    cuda = device.type == "cuda"
    now = taken_memory(device)
    spare = 0 if cuda else _SPARE
    there = {name: now + spare + each.device + (0 if cuda else each.host) for name, each in found.items()}
    here = there if not cuda else {name: resident() + _SPARE + each.host for name, each in found.items()}
    return Forecast(
        bytes=max(peak_memory(device), *there.values()),
        host_bytes=max(peak_resident(), *here.values()),
        seconds=sum(every.values()),
        stages=every,
        moments=there,
    )


def moments(sizes: Sizes, work: Workload, *, free: float) -> dict[str, Moment]:
    """The moments of a run that may be its largest, as what they add to the loaded model.

    free  bytes that a polish may take, by which its steps are divided
    """
    fit, tune, select, report = (max(work.splits[name]) for name in SPLITS)
    target, baseline = work.target, work.baseline
    prompt = max(target.longest_prompt, baseline.longest_prompt)
    response = max(target.longest_response, baseline.longest_response)
    reported = max(response, work.reported[1].longest_response)

    def reference(split: str, tokens: int) -> int:
        mean = min(baseline.response, tokens)
        return memory.reference_bytes(sizes, rows=round(work.splits[split][1] * mean), positions=1)

    def compared(rows: int, tokens: int) -> int:
        longest, positions = baseline.longest_prompt + tokens, min(tokens, baseline.longest_response)
        taken = min(rows, work.batch(longest, positions))
        return memory.compare_bytes(sizes, rows=taken, tokens=longest, positions=positions)

    def generated(rows: int, most: int = response) -> int:
        taken = min(rows, work.batch(prompt + most, 1))
        return memory.generation_bytes(sizes, rows=taken, tokens=prompt + most)

    known = reference("tune", CONTINUED)
    found = {
        "find": Moment(generated(fit)),
        "trial": Moment(known + max(compared(tune, CONTINUED), generated(tune))),
        "confirmation": Moment(known + reference("select", CONTINUED) + compared(select, CONTINUED)),
        "report": Moment(
            reference("report", CONTINUED) + max(compared(report, CONTINUED), generated(report, reported))
        ),
        "bake": Moment(memory.proof_bytes(sizes, large=LARGE)),
    }
    if work.recipe is None:
        return found
    known += reference("fit", work.continued)
    tokens, positions = prompt + work.continued, max(WINDOW, min(work.continued, baseline.longest_response))
    rows = memory.choose_micro(sizes, rows=work.recipe.rows, tokens=tokens, positions=positions, free=free - known)
    step = memory.step_bytes(sizes, rows=rows.rows, tokens=tokens, positions=positions, recompute=rows.recompute)
    statistics, triangles = memory.statistics_bytes(sizes), memory.ridge_bytes(sizes)
    kept = known + triangles + memory.factor_bytes(sizes)
    taken = min(32, fit, work.batch(tokens, 1))
    passing = memory.pass_bytes(sizes, rows=taken, tokens=tokens, positions=0)
    return {
        **found,
        "statistics": Moment(known + passing, memory.collecting_bytes(sizes)),
        "polish": Moment(kept + step, statistics),
        "trial": Moment(kept + max(compared(tune, CONTINUED), generated(tune)), statistics),
    }


def _allowed(device: torch.device) -> float:
    return free_memory(device) * memory.SHARE_OF_FREE.get(device.type, memory.SHARE_OF_FREE["cpu"])


def _counted(split: Split, prompts: PromptSet) -> tuple[int, int]:
    """Prompts that are answered and that are compared on: those to keep are answered in the report, else compared."""
    if split == "report":
        return len(prompts.target) + len(prompts.keep), len(prompts.baseline)
    return len(prompts.target), len(prompts.unchanged)


def _rendered(model: EditableModel, behavior: Behavior, splits: Splits, side: str) -> list[list[int]]:
    """Some rendered prompts of one side: the longest of all first, then others evenly from the fit split."""
    every = [prompt for split in SPLITS for prompt in getattr(splits[split], side)]
    fit = getattr(splits.fit, side)
    some = [max(every, key=len), *fit[:: math.ceil(len(fit) / _SAMPLE)]]
    return model.template.encode(some, system=behavior.system, thinking=behavior.thinking)


def _side(rows: Sequence[Sequence[int]], sampled: Sampled, longest: int) -> Side:
    usual = [len(row) for row in rows[1:]]
    lengths = sampled.lengths(longest)
    return Side(
        prompt=sum(usual) / len(usual),
        longest_prompt=max(len(row) for row in rows),
        response=sum(lengths) / len(lengths),
        longest_response=min(longest, max(lengths) + 2),
    )


def _focus(model: EditableModel, behavior: Behavior, shown: Sampled) -> int:
    """Where the behavior begins in the middle one of the responses that show it; 0 where none of them does."""
    inside = model.template.opens_thinking(thinking=behavior.thinking)
    found = [onset_token(each, behavior, model.template, inside=inside) for each in shown.responses]
    places = sorted(place for place in found if place is not None)
    return places[len(places) // 2] if places else 0


def sentence(found: Forecast, *, cuda: bool) -> str:
    """One line for people."""
    where = "of GPU memory" if cuda else "of memory"
    beside = f", {_size(found.host_bytes)} of main memory" if cuda else ""
    return f"needs about {_size(found.bytes)} {where}{beside} and {_duration(found.seconds)} on this device"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(10 * round(seconds / 10), 10)} seconds"
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"
