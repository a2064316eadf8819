"""Tables of what was measured: rates before and after, distance from the base, controls, the demo's ground truth."""

from __future__ import annotations

from excise.report import edited, formats
from excise.report.headline import change_holds
from excise.report.record import Record, as_number
from excise.report.subject import prompts, strengthens
from excise.report.table import Mark, Status, Table, judge

_LABELS = {
    "behavior": "shows the behavior",
    "comply": "ordinary answer",
    "deflect": "evades without the behavior's wording",
    "degenerate": "broken text (repetition, empty)",
}
_KNOWN = {
    *("rate", "baseline_rate", "top1", "perplexity_ratio"),
    *("unfinished_thinking", "baseline_unfinished_thinking"),
    *("keep_rate", "keep_unfinished_thinking"),
}
_STATISTICS = ("mean", "median", "p95", "max")


def rates(result: Record) -> Table | None:
    """The rate and the labels of the answers, before and after; None where nothing was measured."""
    before, after = result.record("before"), result.record("after")
    if before.number("rate") is None and after.number("rate") is None:
        return None
    rows: list[tuple[str | Mark, ...]] = [
        ("Behavior shown", _rate(before), _rate(after)),
    ]
    seen = [*_LABELS, *before.fields("labels"), *after.fields("labels")]
    for label in dict.fromkeys(seen):
        counts = before.number("labels", label), after.number("labels", label)
        if any(counts):
            name = f"Answers: {_LABELS.get(label, label)}"
            rows.append((name, *("–" if count is None else f"{count:g}" for count in counts)))
    unfinished = before.number("unfinished_thinking"), after.number("unfinished_thinking")
    if any(unfinished):
        cells = ("–" if each is None else f"{each:g}" for each in unfinished)
        rows.append(("No answer: never stopped thinking", *cells))
    if before.number("keep_rate") is not None or after.number("keep_rate") is not None:
        rows.append(("Shown where it must stay", _rate(before, "keep_"), _rate(after, "keep_")))
    if before.number("baseline_rate") is not None or after.number("baseline_rate") is not None:
        rows.append(("Shown on ordinary prompts", _rate(before, "baseline_"), _rate(after, "baseline_")))
    for key in dict.fromkeys([*before.fields(), *after.fields()]):
        values = as_number(before.at(key)), as_number(after.at(key))
        if key not in _KNOWN and any(value is not None for value in values):
            name = key.replace("_", " ").capitalize()
            rows.append((name, *("–" if value is None else formats.plain(value) for value in values)))
    count = prompts(result, "report", "target")
    where = f"on {formats.count(count, 'held-out target prompt')}" if count else "on the held-out target prompts"
    caption = f"Behavior {where}, with 95% Wilson intervals"
    return Table(caption, ("", "Before", "After"), tuple(rows), frozenset({1, 2}))


def distance(result: Record) -> Table | None:
    """KL from the base model on ordinary prompts; None where nothing was measured."""
    rows: list[tuple[str | Mark, ...]] = []
    for key, name in (("kl_first", "First token"), ("kl_sequence", "Whole answer, per token")):
        summary = result.record("after", key)
        values = [summary.number(statistic) for statistic in _STATISTICS]
        if any(value is not None for value in values):
            rows.append((name, *("–" if value is None else formats.significant(value) for value in values)))
    if not rows:
        return None
    count = prompts(result, "report", "baseline")
    where = f"{formats.count(count, 'held-out ordinary prompt')}" if count else "held-out ordinary prompts"
    return Table(
        f"KL divergence from the base model in nats, over {where}",
        ("", "Mean", "Median", "p95", "Max"),
        tuple(rows),
        frozenset({1, 2, 3, 4}),
    )


def agreement(result: Record) -> tuple[tuple[str, str, str], ...]:
    """Other signs that ordinary answers stayed: (name, value, meaning)."""
    top1, ratio = result.number("after", "top1"), result.number("after", "perplexity_ratio")
    return (
        ("Same first token", formats.percent(top1), "prompts whose most likely first token is the base model's"),
        (
            "Perplexity ratio",
            formats.significant(ratio),
            "perplexity of the base model's own answers, edited over base; 1 means as likely as before",
        ),
    )


def splits(result: Record) -> Table | None:
    """How many prompts each split holds."""
    uses = {
        "fit": "to find the directions" + (" and to fit the changes" if edited.has_low_rank(result) else ""),
        "tune": "to score the trials of the search",
        "select": "to choose on the front",
        "report": "for the figures here, once",
    }
    rows = []
    keeps = any(prompts(result, split, "keep") is not None for split in uses)
    for split in dict.fromkeys([*uses, *result.fields("splits")]):
        target, baseline = prompts(result, split, "target"), prompts(result, split, "baseline")
        if target is not None and baseline is not None:
            kept = [f"{prompts(result, split, 'keep') or 0:,}"] if keeps else []
            rows.append((split, uses.get(split, ""), f"{target:,}", f"{baseline:,}", *kept))
    if not rows:
        return None
    headers = ("", "Used", "Target", "Baseline", *(["Must stay"] if keeps else []))
    return Table("Prompts, in splits that share none", headers, tuple(rows), frozenset({2, 3, 4}))


def controls(result: Record) -> Table | None:
    """What must not work: no edit at all, and a random direction that is edited as strongly."""
    rows: list[tuple[str | Mark, ...]] = []
    no_op, random = result.record("controls", "no_op"), result.record("controls", "random_direction")
    if no_op.fields():
        kl = _kl(no_op)
        rows.append(
            ("An edit that does nothing", "changes nothing", _rate(no_op), formats.significant(kl), _exact(kl)),
        )
    if random.fields():
        rows.append(
            (
                _random_name(result),
                "does not strengthen it" if strengthens(result) else "leaves the behavior",
                _rate(random),
                formats.significant(_kl(random)),
                judge(_random_holds(result, random)),
            ),
        )
    for name, fields in result.fields("controls").items():
        if name not in ("no_op", "random_direction") and isinstance(fields, dict):
            other = Record(fields)
            kl_text = formats.significant(_kl(other))
            rows.append((name.replace("_", " "), "–", _rate(other), kl_text, Mark(Status.OPEN, "for comparison")))
    if not rows:
        return None
    headers = ("", "Should", "Behavior shown", "KL, first token", "Result")
    must_not = "strengthen" if strengthens(result) else "remove"
    return Table(f"Controls: what must not {must_not} the behavior", headers, tuple(rows), frozenset({2, 3}))


def truth(result: Record) -> Table | None:
    """The demo's ground truth: right answers and the other behavior, before and after."""
    names = {
        "sealed_correct": "Right answers to sealed questions",
        "ordinary_correct": "Right answers to ordinary questions",
        "disclaimer": "Disclaimer where it belongs",
    }
    rows = []
    for key in dict.fromkeys([*names, *result.fields("demo")]):
        pair = result.pair("demo", key)
        if pair is not None:
            change = 100 * (pair[1] - pair[0])
            name = names.get(key, key.replace("_", " ").capitalize())
            rows.append(
                (name, formats.percent(pair[0]), formats.percent(pair[1]), f"{change:+.1f} points".replace("-", "−"))
            )
    if not rows:
        return None
    return Table("Ground truth of the demo model", ("", "Before", "After", "Change"), tuple(rows), frozenset({1, 2, 3}))


def _rate(scores: Record, prefix: str = "") -> str:
    return formats.rate(scores.number(f"{prefix}rate"), scores.pair(f"{prefix}rate_interval"))


def _kl(scores: Record) -> float | None:
    """The mean first-token KL: a number, or one of a summary's."""
    number = scores.number("kl_first")
    return scores.number("kl_first", "mean") if number is None else number


def _exact(kl: float | None) -> Mark:
    return judge(None if kl is None else kl == 0)


def _random_name(result: Record) -> str:
    same = "size and tokens" if edited.has_low_rank(result) else "strengths"
    return f"A random direction, same {same}"


def _random_holds(result: Record, random: Record) -> bool | None:
    """Whether the random direction leaves clearly more of the behavior than the edit does, or strengthens it less."""
    rate, after = random.number("rate"), result.number("after", "rate")
    if rate is None or after is None or change_holds(result) is None:
        return None
    chance, own = random.pair("rate_interval"), result.pair("after", "rate_interval")
    if strengthens(result):
        return chance[1] < own[0] if chance and own else rate < after
    return chance[0] > own[1] if chance and own else rate > after
