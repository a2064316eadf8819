"""What the result is about: the model's name, the behavior, and how to run it again."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime

from excise.report.record import Record

_LOCAL = re.compile(r"^([./~\\]|[A-Za-z]:[\\/])|\\|/.*/|\.\.")
_HUB = re.compile(r"^[\w.-]+/[\w.-]+$", re.ASCII)


def model_name(result: Record) -> str:
    """The name to show: a Hub id as it is, of a local directory its last part."""
    name = result.text("model_name") or result.text("base_model") or result.text("model")
    if name is None:
        return "unnamed model"
    if not _LOCAL.search(name):
        return name
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] or name


def hub_id(result: Record) -> str | None:
    """The base model's id on the Hub; None where it is, or looks like, a local directory.

    The key `base_model` decides where it is there; else the form of `model` does.
    """
    given = result.text("base_model")
    if given is None and "base_model" not in result.fields():
        given = result.text("model")
    return given if given is not None and _HUB.fullmatch(given) and not _LOCAL.search(given) else None


def behavior_name(result: Record) -> str:
    """The behavior's name without the path of its file."""
    name = result.text("behavior")
    if name is None:
        return "unnamed behavior"
    return re.split(r"[\\/:]", name)[-1].removesuffix(".toml") or name


def command(result: Record) -> str:
    """The command that made the result, or the one that its settings amount to."""
    given = result.at("command")
    if isinstance(given, str) and given.strip():
        return given.strip()
    if isinstance(given, list | tuple):
        return shlex.join(str(word) for word in given)
    words = ["excise", "run", result.text("model") or "MODEL"]
    for option in ("behavior", "revision", "quantize", "seed", "budget"):
        if (value := result.text(option)) is not None:
            words += [f"--{option}", value]
    if (method := result.text("search", "method")) is not None:
        words += ["--method", method]
    for name, setting in result.fields("search_options").items():
        if name not in ("seed", "budget", "method"):
            words += [f"--{name.replace('_', '-')}", str(setting)]
    return shlex.join(words)


def strengthens(result: Record) -> bool:
    """Whether the run was to make the behavior show more often, not less."""
    return (result.number("search", "strength") or 1) < 0


def prompts(result: Record, split: str, side: str) -> int | None:
    """How many prompts of one side (`target`, `baseline` or `keep`) a split holds; None where that is not said."""
    counts = [item.number() for item in result.items("splits", split)]
    place = ("target", "baseline", "keep").index(side)
    count = counts[place] if len(counts) > max(place, 1) else None
    return None if count is None else int(count)


def goal(result: Record, name: str) -> float | None:
    """A goal that was stated: `max_rate` or `max_kl`."""
    stated = result.number("goals", name)
    return stated if stated is not None else result.number("config", name)


def created(result: Record) -> str | None:
    """When the run began, to the minute in UTC; another form of time stays as it is."""
    text = result.text("created")
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if moment.tzinfo else f"{moment:%Y-%m-%d %H:%M}"


def left_out(result: Record) -> tuple[str, ...] | None:
    """Warnings and what was skipped; None where the result does not say."""
    found = (*result.texts("warnings"), *result.texts("skipped"))
    known = result.at("warnings") is not None and result.at("skipped") is not None
    return found if found or known else None


def nothing_left_out(result: Record) -> str:
    """What to say where nothing is listed."""
    if left_out(result) is None:
        return "Not recorded in this result."
    return "None: the run gave no warning and left nothing out."
