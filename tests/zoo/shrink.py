"""Small configurations of any architecture: the defaults of its own configuration class, with every size reduced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

HIDDEN, LAYERS, HEADS, KV_HEADS, VOCABULARY = 64, 4, 4, 2, 256

_WIDTH = dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "word_embed_proj_dim"), HIDDEN)
_DEPTH = dict.fromkeys(
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks"), LAYERS
)
_HEADS = {
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "swa_num_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads"), KV_HEADS),
}
_INNER = {
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "dim_ff", "decoder_ffn_dim"), 96),
    **dict.fromkeys(("dense_intermediate_size", "intermediate_size_mlp", "shared_intermediate_size"), 80),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 40),
    **dict.fromkeys(("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), 48),
}
_EXPERTS = {
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "num_groups"), 1),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
}
_LATENT = {
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("o_lora_rank", "hc_lowrank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    "qk_head_dim": 24,
    "index_head_dim": 16,
    "index_n_heads": 16,  # with fewer, scores of the top-k tie at exactly zero
    "index_topk": 8,
}
_RECURRENT = {
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    "linear_num_value_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
}
_LENGTHS = {
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 256),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_chunk_size", "attention_window_size"), 8),
}
_TOKENS = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    "hidden_size_per_layer_input": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL: dict[str, int] = {
    **_WIDTH, **_DEPTH, **_HEADS, **_INNER, **_EXPERTS, **_LATENT, **_RECURRENT, **_LENGTHS, **_TOKENS
}  # fmt: skip
HEAD_DIMS = ("head_dim", "swa_head_dim", "global_head_dim")

# Other towers (vision, audio, quantisers) only have to be small.
OTHER: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "encoder_layers", "depth", "num_blocks", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "encoder_attention_heads", "attention_heads"), 4),
    "num_key_value_heads": 4,
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "ffn_dim", "mlp_dim"), 48),
    "out_hidden_size": HIDDEN,
    "vocab_size": VOCABULARY,
}


def shrunk(kind: str, head_dim: int, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of `kind` with every size reduced; `overrides` go last, also into nested configurations."""
    default = AutoConfig.for_model(kind)
    return AutoConfig.for_model(kind, **_merged(_small(default, head_dim), overrides))


def _small(config: PreTrainedConfig, head_dim: int, *, text: bool = True) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    sizes = {**SMALL, **dict.fromkeys(HEAD_DIMS, head_dim)} if text else OTHER
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            chosen[name] = {"model_type": value.model_type, **_small(value, head_dim, text=text and is_text(name))}
        elif name in sizes and (is_number(value) or name.endswith("token_id")):
            chosen[name] = sizes[name]
    return chosen


def is_text(name: str) -> bool:
    """Whether a nested configuration of this name describes a language model."""
    return not any(word in name for word in ("vision", "audio", "vq", "qformer", "perceiver", "image", "encoder"))


def is_number(value: object) -> bool:
    """Whether a setting is a size."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _merged(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in other.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merged(merged[name], value) if nested else value
    return merged
