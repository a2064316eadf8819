"""Somebody else's edited weights, measured as Excise measures its own edits; imported by other benches.

held_out = HeldOut(model_dir, target, baseline, system="…", max_tokens=64)   # the base model, measured once
with swapped(held_out.model.hf_model, tensors_dir):
    held_out.measure()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

import excise
from excise.evaluation import Reference, behavior_rate


def read_prompts(source: Path | Sequence[str]) -> list[str]:
    """The lines of a file, or the prompts themselves."""
    lines = source.read_text(encoding="utf-8").splitlines() if isinstance(source, Path) else source
    return [line.strip() for line in lines if line.strip()]


class HeldOut:
    """A model, prompts of both sides, and what the unedited model does on the baseline prompts.

    Some baseline prompts show the behavior as well (a model refuses harmless ones too). What an edit changes there is
    the behavior, not damage: `kept` has the mean divergences on the others alone.

    max_tokens  of a response to a target prompt
    tokens      of the base model's continuations that `kl_sequence` covers
    dtype       "auto": the checkpoint's; "float32" keeps the noise of bf16 arithmetic out of the figures
    """

    def __init__(
        self,
        model_dir: Path,
        target: Path | Sequence[str],
        baseline: Path | Sequence[str],
        *,
        system: str,
        max_tokens: int,
        tokens: int = 32,
        batch_size: int | None = None,
        dtype: str = "auto",
    ) -> None:
        self.model = excise.load(model_dir, dtype=dtype)
        self.behavior = excise.Behavior.load("refusal").with_options(system=system, max_tokens=max_tokens)
        self.target = read_prompts(target)
        self.batch_size = batch_size
        prompts = read_prompts(baseline)
        self.reference = Reference.measure(self.model, prompts, self.behavior, tokens=tokens, batch_size=batch_size)
        labels = behavior_rate(self.model, prompts, self.behavior, batch_size=batch_size, stop_early=True).labels
        shown = [prompt for prompt, label in zip(prompts, labels, strict=True) if label == "behavior"]
        self.counts = (len(prompts), len(shown))
        self.shown = (
            Reference.measure(self.model, shown, self.behavior, tokens=tokens, batch_size=batch_size) if shown else None
        )

    def measure(self) -> dict[str, Any]:
        """`rate`, `rate_interval`, `labels`, `kl_first`, `kl_sequence`, …, `kept` of the model as it now is."""
        divergence = self.reference.compare(self.model)
        result = behavior_rate(self.model, self.target, self.behavior, batch_size=self.batch_size)
        counts = {"count": result.rate.count, "total": result.rate.total}
        scores = {**counts, **result.rate.to_json(), **divergence.to_json()}
        return {**scores, "kept": self.kept(scores)}

    def kept(self, scores: dict[str, Any]) -> dict[str, float]:
        """Mean divergences on the baseline prompts that the base model does not show the behavior on.

        scores  those of the same model on all of them
        """
        every, shown = self.counts
        there = {} if self.shown is None else self.shown.compare(self.model).to_json()
        return {
            key: (every * scores[key]["mean"] - shown * (there[key]["mean"] if there else 0.0)) / (every - shown)
            for key in ("kl_first", "kl_sequence")
        }


@contextmanager
def swapped(model: nn.Module, tensors_dir: Path) -> Iterator[int]:
    """The model with the weights of every safetensors file in a folder, by parameter name; afterwards as it was.

    Gives the number of weights. Nothing is swapped if a name or a shape does not fit.
    """
    files = sorted(tensors_dir.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no safetensors file in {tensors_dir}")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as content:
            tensors |= {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
    parameters = {name: model.get_parameter(name) for name in tensors}
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(f"{name}: {tuple(tensors[name].shape)} in place of {tuple(parameter.shape)}")
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        _fill(parameters, tensors)
        yield len(tensors)
    finally:
        _fill(parameters, kept)


@torch.no_grad()
def _fill(parameters: dict[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
