"""What the generic shrinking of `zoo.shrink` does not know about causal language models: overrides by architecture.

Values are keyword arguments of the configuration class; a nested dictionary reaches into a nested configuration. A
callable takes the head size of the variant. Every model keeps each type of layer that its architecture mixes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoModel, Gemma3nVisionConfig, PreTrainedModel


class NoTowerConfig(Gemma3nVisionConfig):
    """Stands in for the vision tower of Gemma 3n, which needs timm; such a model cannot be loaded from disk without."""

    model_type = "no_tower"


class NoTower(PreTrainedModel):
    """A vision tower without any weights."""

    config_class = NoTowerConfig


AutoModel.register(NoTowerConfig, NoTower)

Settings = dict[str, Any]
Overrides = Settings | Callable[[int], Settings]

SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
DENSE_FIRST = ["dense", "sparse", "sparse", "sparse"]


def headed(**others: Any) -> Overrides:
    """Attention with a head size of its own, which the default configuration leaves unset."""
    return lambda head_dim: {"head_dim": head_dim, **others}


def latent(**others: Any) -> Overrides:
    """Latent attention: the configured head size is the rotary part, the values' is free; a key and value per head."""
    return lambda head_dim: {"head_dim": 8, "v_head_dim": head_dim, "num_key_value_heads": 4, **others}


def delta(**others: Any) -> Overrides:
    """Gated delta networks: as many value channels as the attention layers have."""
    return lambda head_dim: {"head_dim": head_dim, "linear_value_head_dim": head_dim, **others}


def kimi(head_dim: int) -> Settings:
    """Latent attention next to Kimi's delta attention."""
    linear = {"linear_num_heads": 4, "linear_head_dim": head_dim}
    return {"head_dim": 8, "v_head_dim": head_dim, "num_key_value_heads": 4, **_HYBRID, **linear}


def mamba_2(head_dim: int) -> Settings:
    """Mamba 2 of 128 or 192 channels, which have to be heads times head size."""
    return {"num_heads": 8, "expand": head_dim // 8, "n_groups": 2}


def within(name: str, inner: Overrides, **others: Any) -> Overrides:
    """Overrides of a nested configuration."""
    return lambda head_dim: {name: inner(head_dim) if callable(inner) else inner, **others}


_MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}
_GRANITE = {**_MULTIPLIERS, "attention_multiplier": 0.25}
_SMALL_VQ = {"codebook_size": 32, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
_WINDOWED = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
_ALTERNATING = {"layer_types": [SLIDING, FULL, SLIDING, FULL]}
_HYBRID = {"layer_types": [LINEAR, FULL, LINEAR, FULL]}
_MAMBA = {"mamba_n_heads": 8}

# The last layer of each type stores keys and values for the last two.
_GEMMA_SHARED = {
    "num_hidden_layers": 6,
    "layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING, FULL],
    "num_kv_shared_layers": 2,
}
_GEMMA_4_UNIFIED = {
    **_GEMMA_SHARED,
    "global_head_dim": 32,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "use_double_wide_mlp": True,
}
_GEMMA_4 = {
    **_GEMMA_4_UNIFIED,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 40,
}
_GEMMA_3N = {
    **_GEMMA_SHARED,
    "intermediate_size": 96,
    "laurel_rank": 8,
    "altup_num_inputs": 3,
    "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0, 0.0, 0.0],
}
_QWEN_4 = delta(
    hc_count=3,
    ple_embed_dim=32,
    heads_per_ngram=2,
    ngram_vocab_size_base=50,
    make_ngram_vocab_size_divisible_by=8,
    split_ngram_parts=4,
    indexer_n_heads=2,
    indexer_kv_heads=1,
    indexer_head_dim=32,
    indexer_budget=8,
    indexer_compress_ratio=4,
)


def _dots_3(head_dim: int) -> Settings:
    window = {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 20, "head_dim": 20}
    window |= {"qk_nope_head_dim": 12, "v_head_dim": head_dim}
    return {
        "num_key_value_heads": 4,
        "head_dim": 24,
        "v_head_dim": head_dim,
        "layer_types": ["indexed_attention", "indexed_attention", SLIDING, SLIDING],
        "sliding_window": 8,
        **{f"swa_{name}": value for name, value in window.items()},
    }


def _deepseek_4(head_dim: int) -> Settings:
    return {
        "head_dim": head_dim,
        "num_key_value_heads": 1,
        "partial_rotary_factor": 0.5,
        "layer_types": [SLIDING, "heavily_compressed_attention", "compressed_sparse_attention"] * 2,
        "num_hidden_layers": 6,
        "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "o_groups": 2,
        "hc_mult": 3,
    }


def _compass(head_dim: int) -> Settings:
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [head_dim // 2 - 4, 2, 2]}
    return {"head_dim": head_dim, **_ALTERNATING, "rope_parameters": {SLIDING: rotary, FULL: rotary}}


OVERRIDES: dict[str, Overrides] = {
    # A head size that the default leaves to the width.
    **dict.fromkeys(
        (
            *("apertus", "cohere", "doge", "ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo", "mixtral"),
            *("nanochat", "olmo", "olmo2", "olmo3", "phi", "phi3", "phimoe", "starcoder2"),
        ),
        headed(),
    ),
    "glm4_moe": headed(use_qk_norm=True),
    "nemotron": headed(num_key_value_heads=2),
    "emu3": within("text_config", headed(), vocabulary_map={"<|extra_200|>": 9, "<image>": 10}, vq_config=_SMALL_VQ),
    "helium": {"head_dim": 16},  # its output projection is square
    "hunyuan_v1_dense": headed(),
    "hunyuan_v1_moe": headed(),
    # Inner sizes under names of their own.
    **{kind: {"n_inner": 96} for kind in ("codegen", "gpt-sw3", "gpt2", "gpt_bigcode", "gptj")},
    "ctrl": {"dff": 96},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8, "intermediate_size": 96},
    "gpt_neox_japanese": {"intermediate_multiple_size": 2},
    # Full and sliding attention.
    "cohere_compass_text": _compass,
    "gemma3": {"text_config": _ALTERNATING},
    "gemma3_text": _ALTERNATING,
    "ministral": headed(**_ALTERNATING),
    **dict.fromkeys(("qwen2", "qwen3", "smollm3"), headed(**_WINDOWED)),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe"), headed(**_WINDOWED, mlp_only_layers=[0])),
    "got_ocr2": within("text_config", headed(**_WINDOWED)),
    "moss_transcribe_diarize": {"text_config": _WINDOWED},
    # Gemma with embeddings per layer, keys and values shared between layers, and parallel predictions.
    "gemma3n": {"text_config": _GEMMA_3N, "vision_config": NoTowerConfig(hidden_size=32, vocab_offset=240)},
    "gemma3n_text": _GEMMA_3N,
    "gemma4": {"text_config": _GEMMA_4},
    "gemma4_text": _GEMMA_4,
    "gemma4_unified": {"text_config": _GEMMA_4_UNIFIED},
    "gemma4_unified_text": _GEMMA_4_UNIFIED,
    # Multipliers of the embedding and of every write.
    "afmoe": {"mup_enabled": True},
    **dict.fromkeys(("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared"), headed(**_GRANITE)),
    "granitemoehybrid": headed(**_GRANITE, **_HYBRID, **_MAMBA),
    "hyperclovax": _MULTIPLIERS,
    "minimax": headed(
        block_size=8,
        full_attn_alpha_factor=1.5,
        full_attn_beta_factor=0.5,
        linear_attn_alpha_factor=1.25,
        linear_attn_beta_factor=0.75,
        mlp_alpha_factor=0.8,
        mlp_beta_factor=0.6,
    ),
    "rwkv": lambda head_dim: {"attention_hidden_size": 4 * head_dim, "rescale_every": 2},
    # Experts.
    "cohere2_moe": {
        "first_k_dense_replace": 1,
        "prefix_dense_intermediate_size": 80,
        "layer_types": [FULL, SLIDING, SLIDING, FULL],
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "dots1": headed(
        sliding_window=8, max_window_layers=2, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2
    ),
    "jetmoe": lambda head_dim: {"kv_channels": head_dim},
    "kolibri1": _ALTERNATING,
    "laguna": {**_ALTERNATING, "num_attention_heads_per_layer": [4, 4, 6, 4]},
    "llama4": {"text_config": {"interleave_moe_layer_step": 2}},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "mellum": {**_ALTERNATING, "mlp_layer_types": DENSE_FIRST},
    "mimo_v2_flash": lambda head_dim: {"v_head_dim": head_dim},
    "minimax_m3_vl_text": {
        "index_n_heads": 2,
        "layer_types": [FULL, FULL, "minimax_m3_sparse", "minimax_m3_sparse"],
        "mlp_layer_types": DENSE_FIRST,
        "shared_intermediate_size": 48,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    # Latent attention, with and without an indexer.
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "minicpm3", "youtu"), latent()),
    "deepseek_v2": latent(num_experts_per_tok=2),
    "glm_moe_dsa": latent(indexer_types=["full", "full", "shared", "shared"]),
    "longcat_flash": latent(zero_expert_num=2),
    "dots3_note": within(
        "text_config",
        _dots_3,
        vision_config={"mlp_layer_types": ["dense", "dense"], "adapter_in_dim": 32, "adapter_out_dim": 64},
        audio_config={"adapter_input_size": 32, "adapter_out_dim": 64},
    ),
    "dots3_note_text": _dots_3,
    # Several residual streams, or attention over them.
    "deepseek_v4": _deepseek_4,
    "hy_v4": lambda head_dim: {"v_head_dim": head_dim, "hc_mult": 3},
    "inkling2_text": {
        "num_hidden_layers": 5,
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid", "hybrid_sliding"],
        "n_layers_per_attn_res_block": 2,
        "unpadded_vocab_size": 250,
        "rel_extent": 24,
    },
    "inkling_text": {
        "layer_types": ["hybrid_sliding", "hybrid"] * 2,
        "mlp_layer_types": DENSE_FIRST,
        "unpadded_vocab_size": 250,
        "rel_extent": 24,
    },
    "qwen4_exp": within("text_config", _QWEN_4),
    "qwen4_exp_text": _QWEN_4,
    "reformer": lambda head_dim: {
        "is_decoder": True,
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "attention_head_size": head_dim,
        "feed_forward_size": 96,
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [24, 40],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    # Attention next to Mamba, convolutions or linear attention.
    **dict.fromkeys(("bailing_hybrid", "kimi_linear"), kimi),
    "bamba": headed(attn_layer_indices=[1, 3], **_MAMBA),
    "falcon_h1": headed(
        mamba_d_ssm=48,
        mamba_n_heads=6,
        mamba_d_head=8,
        embedding_multiplier=3.0,
        lm_head_multiplier=0.5,
        key_multiplier=0.5,
        attention_in_multiplier=0.9,
        attention_out_multiplier=0.8,
        ssm_in_multiplier=0.7,
        ssm_out_multiplier=0.6,
        mlp_multipliers=[0.9, 0.5],
        ssm_multipliers=[0.9, 0.8, 0.7, 0.6, 0.5],
    ),
    "jamba": headed(num_hidden_layers=6, attn_layer_period=3, attn_layer_offset=1),
    "lfm2": headed(layer_types=["conv", FULL, "conv", FULL], block_auto_adjust_ff_dim=False),
    "lfm2_moe": headed(layer_types=["conv", FULL, "conv", FULL]),
    "lfm3": {"layer_types": ["conv", SLIDING, FULL, "conv"]},
    **dict.fromkeys(("falcon_mamba", "mamba"), lambda head_dim: {"intermediate_size": 4 * head_dim}),
    "mamba2": mamba_2,
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "mamba_n_groups": 2},
    "olmo_hybrid": delta(),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), within("text_config", delta())),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), delta()),
    "qwen3_next": delta(mlp_only_layers=[0]),
    "recurrent_gemma": {"lru_width": 80},
    "xlstm": lambda head_dim: {
        "v_dim_factor": head_dim / 8 - 1,  # 64 or 128 channels
        "ffn_proj_factor": 1.5,
        "ffn_round_up_to_multiple_of": 32,
    },
    "zamba": lambda head_dim: {
        "attention_head_dim": head_dim,
        "num_hidden_layers": 6,
        "layers_block_type": [LINEAR, LINEAR, "hybrid", LINEAR, "hybrid", LINEAR],
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "num_hidden_layers": 8,
        "layers_block_type": [LINEAR, "hybrid"] * 4,
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
        "adapter_rank": 8,
        "use_mem_rope": True,
        "n_mamba_heads": 8,
        "mamba_ngroups": 2,
        "num_key_value_heads": 4,
    },
    "zaya": {
        "layer_types": ["hybrid", "hybrid_sliding"] * 2,
        "sliding_window": 8,
        "num_experts_per_tok": 1,  # all that it supports
        "router_hidden_size": 24,
    },
    # Other inputs.
    "blt": {
        "encoder_config": {"hidden_size": 64, "hidden_size_global": 96, "num_hidden_layers": 2},
        "decoder_config": {"hidden_size_global": 96, "head_dim": 16},
        "global_config": {"hidden_size": 96, "intermediate_size": 80, "head_dim": 24},
        "patcher_config": {"hidden_size": 32, "head_dim": 8, "num_hidden_layers": 2},
        "encoder_hash_byte_group_size": [3, 4],
        "encoder_hash_byte_group_vocab": 100,
    },
    "phi4_multimodal": headed(audio_config={"nemo_conv_channels": 32, "ext_pw_out_channel": 32}),
    "mllama": {"text_config": {"cross_attention_layers": [1, 3]}},
}  # fmt: skip
