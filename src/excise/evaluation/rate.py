"""How often the model shows the behavior."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from excise.behaviors import Behavior
from excise.behaviors.measures import Label
from excise.edit import Edit
from excise.evaluation.labels import LABELS, label_response
from excise.evaluation.statistics import wilson
from excise.model import EditableModel
from excise.model.generate import Response, TextModel, generate_from_tokens
from excise.model.row_groups import Population
from excise.model.template import ChatTemplate
from excise.progress import Progress, silent

# A hit counts as certain once this many characters have followed it: "I can't" may go on with "wait to help".
_SETTLED = 40


@dataclass(frozen=True)
class Rate:
    """`count` of `total` responses show the behavior.

    labels               how many responses have each label; those that only think have none
    unfinished_thinking  how many never left their thinking: whether they would show the behavior is not known
    """

    count: int
    total: int
    labels: Mapping[Label, int]
    unfinished_thinking: int = 0

    @property
    def value(self) -> float:
        """The share; 0 of 0 is 0."""
        return self.count / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the share."""
        return wilson(self.count, self.total)

    @classmethod
    def of(cls, labels: Sequence[Label], unfinished: Sequence[bool] = ()) -> Rate:
        """Count labels.

        unfinished  for each response, whether it never left its thinking; none by default
        """
        over = [label for label, open_ in zip(labels, unfinished or [False] * len(labels), strict=True) if not open_]
        counts = Counter(over)
        found: dict[Label, int] = {label: counts[label] for label in LABELS}
        return cls(counts["behavior"], len(labels), found, len(labels) - len(over))

    def to_json(self) -> dict[str, Any]:
        """`rate`, `rate_interval`, `labels` and `unfinished_thinking`."""
        return {
            "rate": self.value,
            "rate_interval": list(self.interval),
            "labels": dict(self.labels),
            "unfinished_thinking": self.unfinished_thinking,
        }


@dataclass(frozen=True)
class RateResult:
    """A rate with the responses it was counted on, in the order of the prompts.

    unfinished  for each response, whether it never left its thinking (its label is "degenerate" then, and not counted)
    """

    rate: Rate
    responses: tuple[Response, ...]
    labels: tuple[Label, ...]
    unfinished: tuple[bool, ...] = ()


def behavior_rate(
    model: TextModel,
    prompts: Sequence[str],
    behavior: Behavior,
    *,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    stop_early: bool = False,
    progress: Progress = silent,
) -> RateResult:
    """Generate greedily, with whatever edit is live, and label every response.

    max_tokens  None: as the behavior says
    stop_early  a row leaves the batch once the behavior is shown beyond doubt, or can no longer be shown because the
                detectors' window has passed; what the rest of that response would have been stays unknown, so fewer
                responses may be labelled degenerate
    """
    return behavior_rate_each(
        model,
        prompts,
        behavior,
        Population(1),
        max_tokens=max_tokens,
        batch_size=batch_size,
        stop_early=stop_early,
        progress=progress,
    )[0]


def behavior_rate_many(
    model: EditableModel,
    prompts: Sequence[str],
    behavior: Behavior,
    edits: Sequence[Edit],
    *,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    stop_early: bool = False,
    progress: Progress = silent,
) -> list[RateResult]:
    """`behavior_rate` under each edit, in shared batches where that can be; the model is left as it was."""

    def work(population: Population) -> list[RateResult]:
        return behavior_rate_each(
            model,
            prompts,
            behavior,
            population,
            max_tokens=max_tokens,
            batch_size=batch_size,
            stop_early=stop_early,
            progress=progress,
        )

    return model.measure_each(edits, work)


def behavior_rate_each(
    model: TextModel,
    prompts: Sequence[str],
    behavior: Behavior,
    population: Population,
    *,
    edits: Sequence[int] | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    stop_early: bool = False,
    progress: Progress = silent,
) -> list[RateResult]:
    """`behavior_rate` under each edit of a population that is live, or under those numbered in `edits` alone."""
    count, chosen = len(prompts), range(len(population)) if edits is None else edits
    encoded = model.template.encode(prompts, system=behavior.system, thinking=behavior.thinking)
    responses = generate_from_tokens(
        model,
        encoded * len(chosen),
        max_tokens=max_tokens or behavior.max_tokens,
        batch_size=batch_size,
        stop=decided_by(behavior, model.template) if stop_early else None,
        groups=population.groups(count, edits=chosen),
        progress=progress,
    )
    parts = [responses[place * count : (place + 1) * count] for place in range(len(chosen))]
    return [label_responses(part, behavior, model.template) for part in parts]


def label_responses(responses: Sequence[Response], behavior: Behavior, template: ChatTemplate) -> RateResult:
    """The rate over responses that are there already, by the behavior's detectors."""
    inside = template.opens_thinking(thinking=behavior.thinking)
    answers = [answer_of(response.text, template, inside=inside) for response in responses]
    labels = tuple(label_response(answer, behavior) for answer in answers)
    thinking = tuple(template.is_thinking(response.text, inside=inside) for response in responses)
    return RateResult(Rate.of(labels, thinking), tuple(responses), labels, thinking)


def answer_of(text: str, template: ChatTemplate, *, inside: bool = False) -> str:
    """A response without what this model thinks first."""
    return text[template.answer_start(text, inside=inside) :]


def decided_by(behavior: Behavior, template: ChatTemplate) -> Callable[[str], bool]:
    """Whether a text shows the behavior beyond doubt, or can no longer show it: see `stop_early`."""
    inside = template.opens_thinking(thinking=behavior.thinking)
    window = behavior.detectors.window

    def decided(text: str) -> bool:
        answer = answer_of(text, template, inside=inside)
        if behavior.find_onset(answer) is not None and behavior.find_onset(answer[:-_SETTLED]) is not None:
            return True
        return window is not None and len(answer) > window + _SETTLED and not _is_thinking(answer)

    return decided


def _is_thinking(answer: str) -> bool:
    """Whether an answer begins with thinking that only a generic tag tells (its length says nothing then)."""
    return answer.lstrip().startswith(("<", "["))
