"""How fast a rate is counted, against plain `model.generate` in fixed batches of the same size, at the same labels.

    python bench/evaluate.py [--edit FILE] [--tokens 64 128 512] [--batch 16] [--prompts 150] [--repeats 2]

On the bench model and its report prompts, without an edit and, with `--edit`, with one. The ways take turns in one
process, so that ratios are of one run; processor seconds, as other work may share the machine. "in full": every
response to its end, as in a report; "decided": a row leaves once its label is settled, as in a search. Prints a
Markdown table; no prompt and no response.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from real_model import ROOT, SHARED, SYSTEM
from swapped import read_prompts

import excise
from excise.evaluation import behavior_rate, label_response

MODEL = ROOT / "runs" / "bench-model"


def main() -> None:
    options = _options()
    if not SHARED.is_dir() or not (MODEL / "config.json").is_file():
        sys.exit("bench skipped: the bench model and its prompts are not here (see bench/real_model.py)")
    model = excise.load(MODEL)
    behavior = excise.Behavior.load("refusal").with_options(system=SYSTEM)
    prompts = read_prompts(SHARED / "prompts" / "target_report.txt")[: options.prompts]
    edits = {"base": None, **({"edited": excise.Edit.load(options.edit)} if options.edit else {})}
    print("| model | tokens | way | CPU seconds | prompts / s | ratio | labels that differ |")
    print("|---|---|---|---|---|---|---|")
    for name, edit in edits.items():
        with model.edited(edit) if edit is not None else nullcontext():
            for tokens in options.tokens:
                ways = _ways(model, behavior, prompts, tokens=tokens, batch=options.batch)
                seconds, labels = _timed(ways, repeats=options.repeats)
                for way, taken in seconds.items():
                    ratio = seconds["model.generate"] / taken
                    differ = sum(one != other for one, other in zip(labels[way], labels["model.generate"], strict=True))
                    cells = (name, tokens, way, f"{taken:.1f}", f"{len(prompts) / taken:.2f}", f"{ratio:.2f}", differ)
                    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--edit", type=Path)
    parser.add_argument("--tokens", nargs="*", type=int, default=[64, 128, 512])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=2)
    return parser.parse_args()


Shown = list[bool]


def _ways(
    model: excise.EditableModel, behavior: excise.Behavior, prompts: Sequence[str], *, tokens: int, batch: int
) -> dict[str, Callable[[], Shown]]:
    """Each way to find out which responses show the behavior."""

    def plain() -> Shown:
        return [label_response(text, behavior) == "behavior" for text in _plain(model, prompts, tokens, batch)]

    def ours(*, stop_early: bool) -> Shown:
        found = behavior_rate(model, prompts, behavior, max_tokens=tokens, batch_size=batch, stop_early=stop_early)
        return [label == "behavior" for label in found.labels]

    return {
        "model.generate": plain,
        "in full": lambda: ours(stop_early=False),
        "decided": lambda: ours(stop_early=True),
    }


@torch.no_grad()
def _plain(model: excise.EditableModel, prompts: Sequence[str], tokens: int, batch: int) -> list[str]:
    """As the model card says: the template, left padding, greedy, batches in the order of the prompts."""
    tokenizer: Any = model.tokenizer
    tokenizer.padding_side = "left"
    texts = [model.template.render(prompt, system=SYSTEM) for prompt in prompts]
    found: list[str] = []
    for start in range(0, len(texts), batch):
        inputs = tokenizer(texts[start : start + batch], return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.hf_model.generate(
            **inputs.to(model.device), max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id or 0
        )
        found += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def _timed(ways: dict[str, Callable[[], Shown]], *, repeats: int) -> tuple[dict[str, float], dict[str, Shown]]:
    """The median processor seconds of each way, which take turns, and what each says."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    labels: dict[str, Shown] = {}
    for _ in range(repeats):
        for way, work in ways.items():
            began = time.process_time()
            labels[way] = work()
            taken[way].append(time.process_time() - began)
    return {way: median(each) for way, each in taken.items()}, labels


if __name__ == "__main__":
    main()
