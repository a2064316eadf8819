"""A sequence classifier of Transformers as a labeller: any that loads, from a directory or the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from excise.behaviors import Behavior
from excise.behaviors.measures import Classifier, Label
from excise.errors import BehaviorError, ModelError
from excise.evaluation.labelling import Answers, Verdicts, labeller
from excise.model.forward import batches_by_length
from excise.model.locate import locate

_BATCH = 32


def _named(behavior: Behavior) -> Classifier:
    if behavior.classifier is None:
        raise BehaviorError(
            f"the behavior '{behavior.name}' names no classifier",
            hint="add a section [classifier] with `model` and `labels` to its file (docs/scorers.md)",
        )
    return behavior.classifier


@labeller("classifier", needs=_named)
def classifier(answers: Answers) -> Verdicts:
    """The label of the class with the largest logit; an answer without text is degenerate and is not asked about.

    Answers longer than the classifier reads are cut at the end, and counted as `truncated`. Logits that are no numbers
    make the answer unknown. Raises `BehaviorError` for a behavior without a classifier, `ModelError` for one that does
    not load or has none of the classes that the behavior names.
    """
    asked = _named(answers.behavior)
    model, tokenizer, names = _loaded(asked.model, asked.revision, str(answers.device))
    meanings = _meanings(asked, names)
    labels: list[Label | None] = ["degenerate" if not text.strip() else None for text in answers.texts]
    waiting = [index for index, label in enumerate(labels) if label is None]
    texts = [answers.texts[index] for index in waiting]
    pairs = [answers.prompts[index] for index in waiting] if asked.with_prompt else None
    limit = _limit(model, tokenizer)
    rows = _tokenised(tokenizer, pairs, texts, limit)
    done = 0
    for group in batches_by_length([row["input_ids"] for row in rows], batch_size=answers.batch_size or _BATCH):
        batch = tokenizer.pad([rows[index] for index in group], return_tensors="pt").to(answers.device)
        with torch.no_grad():
            logits = model(**batch).logits.float()
        for index, row in zip(group, logits, strict=True):
            labels[waiting[index]] = meanings[int(row.argmax())] if bool(row.isfinite().all()) else None
        done += len(group)
        answers.progress("classifier", done, len(rows), "answers")
    truncated = sum(len(row["input_ids"]) >= limit for row in rows)
    return Verdicts(tuple(labels), {"truncated": truncated})


def _tokenised(tokenizer: Any, pairs: list[str] | None, texts: list[str], limit: int) -> list[dict[str, list[int]]]:
    if not texts:
        return []
    first = texts if pairs is None else pairs
    found = tokenizer(first, None if pairs is None else texts, truncation=True, max_length=limit)
    return [{key: found[key][index] for key in found} for index in range(len(texts))]


def _meanings(asked: Classifier, names: Mapping[int, str]) -> dict[int, Label]:
    """What each class stands for."""
    known = {name for index, name in names.items()} | {str(index) for index in names}
    if not known & set(asked.labels):
        raise BehaviorError(
            f"the classifier has none of the classes {', '.join(asked.labels)}",
            hint=f"its classes are: {', '.join(names.values())}",
        )
    return {index: asked.labels.get(name, asked.labels.get(str(index), "comply")) for index, name in names.items()}


def _limit(model: Any, tokenizer: Any) -> int:
    """How many tokens it reads; a RoBERTa keeps two of its positions to itself, which its tokenizer knows."""
    positions = int(getattr(model.config, "max_position_embeddings", 0) or 512)
    return min(positions, int(tokenizer.model_max_length))


@lru_cache(maxsize=1)
def _loaded(name: str, revision: str | None, device: str) -> tuple[Any, Any, dict[int, str]]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    directory = locate(name, revision=revision) if not Path(name).is_dir() else Path(name)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(directory, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the classifier {name} cannot be loaded: {' '.join(str(error).split())[:300]}",
            hint="give a sequence-classification model of Transformers with safetensors weights and a tokenizer",
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        model.config.pad_token_id = tokenizer.pad_token_id
    names = {int(index): str(label) for index, label in model.config.id2label.items()}
    return model.eval().to(device), tokenizer, names
