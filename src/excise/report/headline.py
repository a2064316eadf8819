"""The few big numbers at the top, each with what it means and whether it is what was hoped for."""

from __future__ import annotations

from dataclasses import dataclass

from excise.report import formats
from excise.report.record import Record
from excise.report.subject import behavior_name, goal, model_name, prompts, strengthens
from excise.report.table import MISSED, NO_GOAL, PASSED, UNMEASURED, Mark, Status, judge

LEAK_BOUND = 1e-4  # of the probe in fp32, where the result names no other
BAKED_LEAK_BOUND = 1e-3  # of the stored weights, rounded to their own precision


@dataclass(frozen=True)
class Headline:
    """One big number. `meaning` explains it to someone who has never met the term."""

    title: str
    value: str
    meaning: str
    mark: Mark
    details: tuple[str, ...] = ()
    unit: str = ""


@dataclass(frozen=True)
class Meter:
    """A rate on a scale from 0 to 1, with its interval where it is known."""

    label: str
    value: float
    bounds: tuple[float, float] | None
    text: str


def change_holds(result: Record) -> bool | None:
    """Whether the behavior went down: to the stated goal, or else by more than chance explains.

    Where it was to be strengthened: whether it went up.
    """
    before, after = result.number("before", "rate"), result.number("after", "rate")
    stated = goal(result, "max_rate")
    if after is None or (stated is None and before is None):
        return None
    if stated is not None:
        return after <= stated
    assert before is not None
    first, last = result.pair("before", "rate_interval"), result.pair("after", "rate_interval")
    if strengthens(result):
        return first[1] < last[0] if first and last else before < after
    return last[1] < first[0] if first and last else after < before


def leak_bound(result: Record) -> float:
    """What the probe's leak must stay below: as the result says, else the bound in fp32."""
    return result.number("leak_tolerance") or LEAK_BOUND


def leak_holds(result: Record) -> bool | None:
    """Whether the probe's leak is within its bound."""
    leak = result.number("leak")
    return None if leak is None else leak < leak_bound(result)


def baked_leak_holds(result: Record) -> bool | None:
    """Whether the baked model's leak is within its bound: the verification's own where it has one."""
    for check in result.items("verify", "checks"):
        if check.text("name") == "leak":
            return check.flag("passed")
    leak = result.number("leak_baked")
    return None if leak is None else leak < BAKED_LEAK_BOUND


def lead(result: Record) -> str:
    """The result in one or two sentences."""
    before, after = result.number("before", "rate"), result.number("after", "rate")
    behavior, model = behavior_name(result), model_name(result)
    if before is None or after is None:
        return f"An edit of {model} for the behavior “{behavior}”. Not both rates were measured, so nothing is claimed."
    count = prompts(result, "report", "target")
    where = f"Of {formats.count(count, 'prompt')}" if count else "Of the prompts"
    aim = "The behavior was to be strengthened, not taken away. " if strengthens(result) else ""
    return (
        f"{aim}{where} kept aside for this report, {formats.percent(after)} of the answers of the edited {model} show "
        f"the behavior “{behavior}”; {formats.percent(before)} did before."
    )


def meters(result: Record) -> tuple[Meter, ...]:
    """The rate before and after, for the drawing under the first number."""
    found = []
    for key in ("before", "after"):
        value, bounds = result.number(key, "rate"), result.pair(key, "rate_interval")
        if value is not None:
            found.append(Meter(key, min(max(value, 0.0), 1.0), bounds, formats.rate(value, bounds)))
    return tuple(found)


def headlines(result: Record) -> tuple[Headline, ...]:
    """The big numbers, in the order of the page."""
    kept = [_kept(result)] if result.fields("comparison", "keep") else []
    return (_change(result), _distance(result), *kept, _leak(result), _coverage(result), _verification(result))


def tally(result: Record) -> Mark:
    """One mark over all of the big numbers."""
    marks = [headline.mark for headline in headlines(result)]
    missed = sum(mark.status is Status.MISS for mark in marks)
    unmeasured = sum(mark == UNMEASURED for mark in marks)
    if missed:
        return Mark(Status.MISS, f"{formats.count(missed, 'point')} missed")
    if unmeasured:
        return Mark(Status.OPEN, f"nothing missed, {unmeasured} not measured")
    return Mark(Status.PASS, "all checks passed")


def _change(result: Record) -> Headline:
    before, after = result.number("before", "rate"), result.number("after", "rate")
    stated = goal(result, "max_rate")
    bounds = result.pair("before", "rate_interval") and result.pair("after", "rate_interval")
    details = [] if stated is None else [f"Goal: at most {formats.percent(stated)}."]
    if bounds:
        details.append("The bars show 95% Wilson intervals.")
    if stated is None and before is not None and after is not None:
        way = "higher" if strengthens(result) else "lower"
        details.append(
            f"Pass: {way}, and the two intervals do not overlap."
            if bounds
            else f"Pass: {way} than before; no intervals given."
        )
    unknown = before is None and after is None
    value = "–" if unknown else f"{_short(before)} → {_short(after)}"
    return Headline(
        "Behavior shown, strengthened" if strengthens(result) else "Behavior shown",
        value,
        "Share of answers, to prompts that call for it, in which the behavior is found.",
        judge(change_holds(result)),
        tuple(details),
    )


def _short(value: float | None) -> str:
    return "–" if value is None else formats.percent(value)


def _distance(result: Record) -> Headline:
    kl, stated = result.number("after", "kl_first", "mean"), goal(result, "max_kl")
    top1, count = result.number("after", "top1"), prompts(result, "report", "baseline")
    details = [] if stated is None else [f"Goal: at most {formats.significant(stated)}."]
    if top1 is not None:
        details.append(f"The most likely first token is the same for {formats.percent(top1)} of them.")
    mark = UNMEASURED if kl is None else NO_GOAL if stated is None else PASSED if kl <= stated else MISSED
    where = formats.count(count, "ordinary prompt") if count else "ordinary prompts"
    return Headline(
        "Change elsewhere",
        "–" if kl is None else formats.significant(kl),
        f"KL divergence of the first token’s probabilities from the base model’s, mean over {where}. 0: no change.",
        mark,
        tuple(details),
        "" if kl is None else "nats (KL)",
    )


def _kept(result: Record) -> Headline:
    before, after = result.number("before", "keep_rate"), result.number("after", "keep_rate")
    most, holds = result.number("comparison", "keep", "most_fall"), result.flag("comparison", "keep", "holds")
    details = [] if most is None else [f"Goal: a fall of {100 * most:g} points at most."]
    if holds is None:
        details.append("It falls by more, but on so few prompts that chance could do it.")
    return Headline(
        "Kept where it must stay",
        f"{_short(before)} → {_short(after)}",
        "Share of answers that show the behavior, to prompts where it has to go on being shown.",
        Mark(Status.OPEN, "cannot be told") if holds is None else judge(holds),
        tuple(details),
    )


def _leak(result: Record) -> Headline:
    baked, live = result.number("leak_baked"), leak_holds(result)
    baked_holds = baked_leak_holds(result)
    details = [f"Bound {formats.leak(leak_bound(result))}."]
    if baked is not None:
        details.append(f"Baked model, in the precision of its weights: {formats.leak(baked)}.")
    else:
        details.append("Baked model: not measured.")
    holds = False if baked_holds is False and baked is not None else live
    return Headline(
        "Leak",
        "–" if result.number("leak") is None else formats.leak(result.number("leak")),
        "What is left of a direction in the residual stream after removing it from every writer. 0 means nothing.",
        judge(holds),
        tuple(details),
    )


def _coverage(result: Record) -> Headline:
    coverage = result.number("coverage")
    writers, unresolved = len(result.items("survey", "writers")), len(result.items("survey", "unresolved"))
    details = (f"{writers:,} of {formats.count(writers + unresolved, 'writer')}.",) if writers else ()
    return Headline(
        "Coverage",
        _short(coverage),
        "Share of the writers (weights that write to the residual stream) that can be edited exactly.",
        judge(None if coverage is None else coverage >= 1),
        details,
    )


def _verification(result: Record) -> Headline:
    checks = result.items("verify", "checks")
    passed = result.flag("verify", "passed")
    held = sum(check.flag("passed") is True for check in checks)
    if passed is None and checks:
        passed = held == len(checks)
    elif passed and held < len(checks):
        passed = False
    return Headline(
        "Baked model",
        f"{held} / {len(checks)}" if checks else "–",
        "Checks of the written weights: untouched bytes identical, edited ones as computed, same answers as the edit.",
        judge(passed),
        () if checks else ("No model was baked, or it was not verified.",),
    )
