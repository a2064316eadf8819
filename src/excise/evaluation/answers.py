"""A scorer that is not run unless asked for: answers to baseline prompts, written out.

Divergence covers the first tokens of the base model's own answers. What an edit does to long answers of its own (loops,
ends too soon) only shows where they are generated, which costs as much as all else. So it is registered by being
imported: `--scorer-module excise.evaluation.answers`.
"""

from __future__ import annotations

from typing import Any

from excise.evaluation.rate import behavior_rate
from excise.evaluation.registry import Subject, scorer

TOKENS = 256
"""Of an answer, at most."""


@scorer("answers", keys=["answers.degenerate", "answers.tokens"])
def answers(subject: Subject) -> dict[str, Any]:
    """`answers.degenerate`, the share that is empty, loops or is no text; `answers.tokens`, their mean length."""
    found = behavior_rate(
        subject.model,
        subject.prompts.baseline,
        subject.behavior,
        max_tokens=TOKENS,
        batch_size=subject.batch_size,
        progress=subject.progress,
    )
    count = len(found.responses)
    return {
        "answers": {
            "degenerate": found.labels.count("degenerate") / count,
            "tokens": sum(len(response.tokens) for response in found.responses) / count,
        }
    }
