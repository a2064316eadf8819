"""Perplexity on a given text: what an edit costs on language that no prompt asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise.errors import InputError
from excise.evaluation.registry import Scorer, Subject
from excise.evaluation.requested import offered_with
from excise.model.forward import continuation_logits, log_softmax_chunks, rows_that_fit, run_in_batches

WINDOW = 512
"""Tokens that are read at a time; each window begins anew."""


@offered_with("perplexity", "FILE")
def perplexity(argument: str) -> Scorer:
    """A scorer for a file: plain text, or JSONL with a `text` in every line, each a document of its own.

    `perplexity` per token, `loss` (nats per token), `bits_per_byte` (comparable across tokenizers), and how many
    `tokens` were predicted in how many `documents`. The text is given as it is, without a chat template. Raises
    `InputError` for a file that cannot be read or is empty.
    """
    documents = read_documents(Path(argument))

    def score(subject: Subject) -> dict[str, Any]:
        return measure(subject, documents)

    return score


def measure(subject: Subject, documents: Sequence[str]) -> dict[str, Any]:
    """The perplexity of the model as it is, with whatever edit is live."""
    model = subject.model
    rows: list[list[int]] = []
    for text in documents:
        ids = list(model.tokenizer(text)["input_ids"])
        rows += [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        raise InputError("the text for the perplexity is shorter than two tokens", hint="give a longer text")
    heads, tails = [row[:1] for row in rows], [row[1:] for row in rows]

    def work(indices: list[int]) -> Tensor:
        found = continuation_logits(model, heads, tails, rows=indices)
        tokens = found.tokens[found.mask]
        losses = [
            -logs.gather(-1, tokens[part, None])[:, 0].double()
            for part, logs in log_softmax_chunks(found.logits[found.mask])
        ]
        return torch.cat(losses).sum().cpu()

    width = max(map(len, rows))
    size = subject.batch_size or rows_that_fit(model, tokens=width, positions=width)
    done = run_in_batches(model, rows, work, batch_size=size, progress=subject.progress, label="perplexity")
    total, count = torch.stack([value for _, value in done]).sum().item(), sum(map(len, tails))
    size_in_bytes = sum(len(str(model.tokenizer.decode(tail)).encode()) for tail in tails)
    return {
        "perplexity": exp(min(total / count, 700.0)),
        "loss": total / count,
        "bits_per_byte": total / log(2) / size_in_bytes,
        "tokens": count,
        "documents": len(documents),
    }


def read_documents(path: Path) -> list[str]:
    """The documents of a text or JSONL file. Raises `InputError`."""
    try:
        content = path.expanduser().read_text(encoding="utf-8")
        if path.suffix != ".jsonl":
            found = [content]
        else:
            found = [str(json.loads(line)["text"]) for line in content.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="give a text file in UTF-8, or JSONL") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not JSONL with a `text` in every line", hint="mend the file") from error
    found = [text for text in found if text.strip()]
    if not found:
        raise InputError(f"{path} holds no text", hint="give a text file in UTF-8, or JSONL")
    return found
