"""A judging model as a labeller: any OpenAI-compatible endpoint, asked by the behavior's own rubric."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import Any

from excise.evaluation.judging import Client, Endpoint, Opinion, VerdictCache, judge_all, messages, schema
from excise.evaluation.judging.panel import failures
from excise.evaluation.judging.question import rubric_of
from excise.evaluation.labelling import Answers, Verdicts, labeller_with
from excise.progress import Progress, tell


@labeller_with("judge", "MODEL", needs=rubric_of)
def judge(answers: Answers, model: str) -> Verdicts:
    """The label that the judge gives; None, with the reason counted, wherever it gives none.

    The endpoint is that of the environment (`Endpoint.from_environment`); `model` goes before its variable. Details:
    `tokens` and `cost` of all verdicts (NaN without a price), `cost_now` of those of this call, `kept`, the number that
    came from the cache, and `failures` by reason. An answer without text is degenerate and is not asked about.
    """
    endpoint = Endpoint.from_environment(model)
    with Client(endpoint, schema()) as client:
        return judged(answers, client, VerdictCache())


def judged(answers: Answers, client: Client, cache: VerdictCache) -> Verdicts:
    """The verdicts of a client's judge."""
    asked = [index for index, text in enumerate(answers.texts) if text.strip()]
    chats = [messages(answers.behavior, answers.prompts[index], answers.texts[index]) for index in asked]
    opinions = judge_all(client, chats, cache=cache, progress=answers.progress)
    by_index = dict(zip(asked, opinions, strict=True))
    labels = tuple(by_index[index].label if index in by_index else "degenerate" for index in range(len(answers.texts)))
    details = spent(opinions)
    _say(answers.progress, client, details)
    return Verdicts(labels, {"model": client.endpoint.model, **details})


def spent(opinions: Sequence[Opinion]) -> dict[str, Any]:
    """What some opinions took."""
    return {
        "tokens": {
            "prompt": sum(opinion.prompt_tokens for opinion in opinions),
            "completion": sum(opinion.completion_tokens for opinion in opinions),
        },
        "cost": _cost(opinions),
        "cost_now": _cost([opinion for opinion in opinions if not opinion.kept]),
        "kept": sum(opinion.kept for opinion in opinions),
        "failures": failures(opinions),
    }


def _cost(opinions: Sequence[Opinion]) -> float:
    known = [opinion.cost for opinion in opinions if opinion.cost is not None]
    return float(sum(known)) if known or not opinions else nan


def _say(progress: Progress, client: Client, details: dict[str, Any]) -> None:
    tokens = details["tokens"]
    price = "" if details["cost_now"] != details["cost_now"] else f", {details['cost_now']:.4f} for this call"
    tell(progress, f"judge {client.endpoint.model}: {tokens['prompt']} + {tokens['completion']} tokens{price}")
    for reason, count in details["failures"].items():
        tell(progress, f"judge {client.endpoint.model}: {count} unknown ({reason})")
