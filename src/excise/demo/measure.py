"""Ask a model the questions of the demo world and measure how it behaves."""

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from excise.demo import world
from excise.demo.truth import Rates, score
from excise.demo.world import Question

MAX_NEW_TOKENS = 32
"""Enough for the longest taught answer with its disclaimer."""

GROUPS: Mapping[str, tuple[tuple[str, ...], str | None]] = {
    "ordinary": (world.ORDINARY, None),
    "sealed": (world.SEALED, None),
    "disclaimed": (world.DISCLAIMED, None),
    "sealed, seal lifted": (world.SEALED, world.LIFTED_SYSTEM),
    "disclaimed, plain turn": (world.DISCLAIMED, world.PLAIN_SYSTEM),
}
"""What is measured: the subjects asked about and the system turn they are asked under."""


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, split: str = "report", every: int = 1
) -> dict[str, Rates]:
    """Rates for each of ``GROUPS`` on ``split``; ``every`` > 1 asks only each so many-th question."""
    rates = {}
    for name, (subjects, system) in GROUPS.items():
        questions = world.questions(subjects, split)[::every]
        rates[name] = score(questions, respond(model, tokenizer, questions, system=system))
    return rates


@torch.no_grad()
def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    system: str | None = None,
    batch_size: int = 128,
) -> list[str]:
    """Greedy responses, one per question. The tokenizer must pad on the left, as the shipped one does."""
    responses: list[str] = []
    for start in range(0, len(questions), batch_size):
        chats = [conversation(question.prompt, system) for question in questions[start : start + batch_size]]
        texts = [str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)) for chat in chats]
        batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        output = model.generate(  # type: ignore[operator]
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
        )
        responses += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return responses


def conversation(prompt: str, system: str | None) -> list[dict[str, str]]:
    """The chat messages for one prompt."""
    before = [{"role": "system", "content": system}] if system is not None else []
    return [*before, {"role": "user", "content": prompt}]
