"""How likely responses that show the behavior are against others, by their beginnings: nothing is generated.

A judgement before the first token is sampled: sensitive where greedy responses have not flipped yet, and as cheap as a
prefill. The difference of mean log-probabilities is the contrast of Arditi et al. (2024, section 2.3) for beginnings of
several tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from excise.behaviors import Behavior
from excise.behaviors.measures import Margin
from excise.errors import BehaviorError
from excise.evaluation.registry import Subject
from excise.evaluation.requested import offered
from excise.evaluation.statistics import Summary, wilson
from excise.model.forward import continuation_logits, rows_that_fit, run_in_batches


@offered("margin")
def margin(subject: Subject) -> dict[str, Any]:
    """On target prompts, in nats per token; above 0 the behavior is the likelier beginning.

    `mean`, `median`, `p95`, `max` of the margins, `behavior`: the share above 0, with its `interval`. Raises
    `BehaviorError` for a behavior without beginnings.
    """
    margins = margins_of(subject)
    count, total = int((margins > 0).sum()), len(margins)
    share = {"behavior": count / total, "interval": list(wilson(count, total))}
    return {**Summary.of(margins).to_json(), **share}


def margins_of(subject: Subject) -> Float[Tensor, " prompt"]:
    """For each target prompt, the mean log-probability of the behavior's beginnings minus that of the alternatives.

    Of a beginning it is the mean over its tokens, of several the mean over beginnings.
    """
    asked = _named(subject.behavior)
    model, behavior = subject.model, subject.behavior
    prompts = model.template.encode(subject.prompts.target, system=behavior.system, thinking=behavior.thinking)
    beginnings = [
        list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (*asked.behavior, *asked.alternative)
    ]
    rows = [prompt for prompt in prompts for _ in beginnings]
    ends = beginnings * len(prompts)
    means = torch.zeros(len(rows))

    def work(indices: list[int]) -> Tensor:
        found = continuation_logits(model, rows, ends, rows=indices)
        logs = found.logits.float().log_softmax(dim=-1).gather(-1, found.tokens[..., None])[..., 0]
        # padding is left out by `where`: −inf times 0 would be NaN
        return (torch.where(found.mask, logs, 0.0).sum(dim=-1) / found.mask.sum(dim=-1)).cpu()

    joined = [[*row, *end] for row, end in zip(rows, ends, strict=True)]
    longest = max(map(len, ends))
    size = subject.batch_size or rows_that_fit(model, tokens=max(map(len, joined)), positions=longest)
    for indices, values in run_in_batches(
        model, joined, work, batch_size=size, progress=subject.progress, label="margin"
    ):
        means[indices] = values
    table = means.view(len(prompts), len(beginnings))
    shown = len(asked.behavior)
    return table[:, :shown].mean(dim=1) - table[:, shown:].mean(dim=1)


def _named(behavior: Behavior) -> Margin:
    if behavior.margin is None:
        raise BehaviorError(
            f"the behavior '{behavior.name}' names no beginnings to compare",
            hint="add a section [margin] with `behavior` and `alternative` to its file (docs/scorers.md)",
        )
    return behavior.margin
