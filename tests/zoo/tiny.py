"""Tiny random models, built in code: one of each kind of residual-stream writer."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

# Sizes are odd on purpose: heads x head_dim != hidden where the architecture lets it, and a square output matrix in
# the others, where the residual axis cannot be read off the shape.
_SHARED = {"num_hidden_layers": 4, "vocab_size": 256, "max_position_embeddings": 256, "hidden_size": 64}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "intermediate_size": 48}

CONFIGS: dict[str, dict[str, object]] = {
    "llama": {**_SHARED, **_HEADS, "intermediate_size": 96},
    "qwen3": {**_SHARED, **_HEADS, "intermediate_size": 96, "head_dim": 24, "tie_word_embeddings": True},
    "gemma2": {**_SHARED, **_HEADS, "intermediate_size": 96, "head_dim": 24, "sliding_window": 8},
    "gemma3_text": {**_SHARED, **_HEADS, "intermediate_size": 96, "head_dim": 16, "sliding_window": 8},
    "gpt2": {"n_layer": 4, "n_embd": 64, "n_head": 4, "vocab_size": 256, "n_positions": 256},
    "mixtral": {**_SHARED, **_HEADS, "intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**_SHARED, **_HEADS, **_MOE, "num_experts": 4, "head_dim": 24, "decoder_sparse_step": 1},
    "gpt_oss": {**_SHARED, **_HEADS, "intermediate_size": 48, "num_local_experts": 4, "head_dim": 16},
    "olmo2": {**_SHARED, **_HEADS, "intermediate_size": 96},
    "phi": {**_SHARED, "num_attention_heads": 4, "intermediate_size": 96},
    "falcon": {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 256, "bias": True},
}


def build(kind: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, spread: float = 4.0) -> PreTrainedModel:
    """A tiny random model with gains, biases and weights large enough for every write to matter."""
    config = AutoConfig.for_model(kind, **{**CONFIGS[kind], **_SPECIAL})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith("_bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(spread)
    return model.eval()


def random_tokens(*, rows: int = 3, length: int = 20, seed: int = 0) -> torch.Tensor:
    """Ordinary tokens for the tiny models."""
    return torch.randint(3, 250, (rows, length), generator=torch.Generator().manual_seed(seed))
