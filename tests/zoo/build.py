"""Tiny random models of every architecture in scope, built in code."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    EvollaForProteinText2Text,
    PreTrainedConfig,
    PreTrainedModel,
)

from zoo import causal, vision_language
from zoo.scope import CAUSAL, MULTIMODAL, VARIANTS
from zoo.shrink import shrunk

SQUARE, OBLONG = 16, 24
"""Head sizes: 4 heads make up the hidden size of 64, or 96."""


def config_of(kind: str, *, head_dim: int = OBLONG) -> PreTrainedConfig:
    """The shrunk configuration; where the architecture has no head size of its own, `head_dim` changes nothing."""
    base = kind.partition("+")[0]
    overrides = (causal.OVERRIDES if base in CAUSAL else vision_language.OVERRIDES).get(base, {})
    settings = overrides(head_dim) if callable(overrides) else overrides
    return shrunk(base, head_dim, {**settings, **VARIANTS.get(kind, {})})


def auto_class_of(kind: str) -> type[AutoModelForCausalLM | AutoModelForImageTextToText]:
    """The class that loads the architecture."""
    return AutoModelForImageTextToText if kind in MULTIMODAL else AutoModelForCausalLM


def build(kind: str, *, head_dim: int = OBLONG, seed: int = 0, spread: float = 4.0) -> PreTrainedModel:
    """A tiny random model in fp32 with gains, biases and weights large enough for every write to matter."""
    torch.manual_seed(seed)
    config = config_of(kind, head_dim=head_dim)
    if kind == "evolla":  # the auto classes of this version refuse its configuration
        model: PreTrainedModel = EvollaForProteinText2Text._from_config(config, dtype=torch.float32)
    else:
        model = auto_class_of(kind).from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.ndim <= 1 or name.endswith("_bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif parameter.any():
                parameter.mul_(spread)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
