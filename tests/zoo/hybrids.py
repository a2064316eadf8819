"""Tiny models whose state is more, or other, than attention's keys and values."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 256, "hidden_size": 64}

HYBRIDS: dict[str, dict[str, object]] = {
    "mamba": {"num_hidden_layers": 2, "state_size": 8},
    "qwen3_next": {
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 96,
        "lru_width": 64,
        "attention_window_size": 32,
    },
    "bloom": {"n_layer": 2, "n_head": 4},
}


def build_hybrid(kind: str, *, seed: int = 0) -> PreTrainedModel:
    """A tiny random model in fp32, with weights large enough for its answers to vary."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**HYBRIDS[kind], **_SPECIAL})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.copy_(0.15 * torch.randn_like(module.weight))
    return model.eval()
