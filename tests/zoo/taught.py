"""A tiny model that is taught, in seconds, to say no to one kind of prompt: for searches of a whole behavior."""

import itertools
import random
from functools import cache
from pathlib import Path

import torch

from excise.behaviors import Behavior, Splits, SplitSizes
from excise.directions import Directions
from excise.find import find_directions
from excise.model import EditableModel
from zoo.letters import CHATML, letters
from zoo.tiny import build

SIZES = SplitSizes(fit=24, tune=12, select=12, report=12)


def prompts(kind: str) -> list[str]:
    """“zig a7” is refused, “zag a7” is answered with the letter."""
    return [f"{kind} {letter}{digit}" for letter, digit in itertools.product("abcdefghij", "0123456789")]


def answer(prompt: str) -> str:
    return "no way" if prompt.startswith("zig") else prompt[4]


def _train(model: EditableModel, steps: int = 120) -> None:
    tokenizer, generator = model.tokenizer, random.Random(0)
    pairs = [(model.template.render(each), answer(each)) for kind in ("zig", "zag") for each in prompts(kind)]
    rows = [
        (tokenizer(prompt, add_special_tokens=False).input_ids, tokenizer(reply, add_special_tokens=False).input_ids)
        for prompt, reply in pairs
    ]
    width = max(len(prompt) + len(reply) for prompt, reply in rows) + 1
    optimiser = torch.optim.AdamW(model.hf_model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = generator.sample(rows, 32)
        ids = torch.tensor([p + r + [2] + [0] * (width - len(p) - len(r) - 1) for p, r in batch])
        labels = torch.tensor([[-100] * len(p) + r + [2] + [-100] * (width - len(p) - len(r) - 1) for p, r in batch])
        loss = model.hf_model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.hf_model.eval()


@cache
def taught() -> EditableModel:
    """The model; the same one for everybody, so it must be left as it was."""
    tiny = EditableModel(build("llama", spread=1.0), letters(template=CHATML), name="taught")
    torch.manual_seed(0)
    _train(tiny)
    return tiny


def refusing(folder: Path) -> Behavior:
    """The behavior, with its prompts as files in `folder`."""
    for kind in ("zig", "zag"):
        (folder / f"{kind}.txt").write_text("\n".join(prompts(kind)))
    return Behavior.from_files(
        folder / "zig.txt", folder / "zag.txt", markers=["no way"], max_tokens=8, positions=["-1", "-2", "+1"]
    )


def found(behavior: Behavior, splits: Splits) -> Directions:
    """Its directions in the model."""
    return find_directions(taught(), behavior, splits=splits)
