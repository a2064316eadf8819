"""What the generic shrinking of `zoo.shrink` does not know about vision-language models: overrides by architecture.

Values are keyword arguments of the configuration class; a nested dictionary reaches into a nested configuration. A
callable takes the head size of the variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zoo.shrink import HEADS, HIDDEN, VOCABULARY

Overrides = Mapping[str, Any] | Callable[[int], Mapping[str, Any]]

DENSE_FIRST = ["dense", "sparse", "sparse", "sparse"]
FULL_LAST = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]


def _mrope(pairs: int) -> dict[str, Any]:
    """Rotary settings that divide `pairs` frequencies among height, width (equally many) and time."""
    side = (pairs + 1) // 3
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [side, side, pairs - 2 * side]}


def _headed(head_dim: int) -> dict[str, Any]:
    """A text tower whose modules read a head size that its configuration class does not declare, or leaves open."""
    return {"text_config": {"head_dim": head_dim}}


def _mla(head_dim: int, rotary_head_dim: int, **others: object) -> dict[str, Any]:
    """Multi-head latent attention: as many key heads as query heads; `head_dim` is what the rotary embedding reads."""
    return {"num_key_value_heads": HEADS, "v_head_dim": head_dim, "head_dim": rotary_head_dim, **others}


def _sam(**others: object) -> dict[str, Any]:
    """The Segment Anything tower."""
    return {"image_size": 64, "output_channels": 16, "mlp_dim": 48, "global_attn_indexes": (1,), **others}


_CLIP = {  # instead of a tower that needs `timm`
    **{"model_type": "clip_vision_model", "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64},
    **{"hidden_size": 32, "intermediate_size": 48},
}
_MULTIPLIERS = {"embedding_multiplier": 2.0, "residual_multiplier": 0.3}  # which are 1 by default
_VQ = {"base_channels": 32, "channel_multiplier": (1, 1), "num_res_blocks": 1, "latent_channels": 32}
_GRANITE_DOCLING_VISION = {"image_size": 64, "deepstack_visual_indexes": [0, 1]}
_QWEN_3_5 = {"text_config": {"linear_value_head_dim": 24}}  # 4 heads of 16 would be the hidden size

_LLAMA: dict[str, Overrides] = {
    "janus": {
        "vision_config": {"image_size": 32, "projection_dim": HIDDEN, "num_image_tokens": 4},
        "vq_config": {
            **_VQ,
            **{"num_embeddings": 48, "num_patches": 2, "projection_dim": 40, "image_token_embed_dim": HIDDEN},
        },
    },
    "deepseek_vl_hybrid": {"high_res_vision_config": _sam(num_pos_feats=16)},
    "perception_lm": {"vision_config": {**_CLIP, "model_args": {"embed_dim": 32}}},
    "evolla": lambda head_dim: {
        "head_dim": head_dim,
        # the last of every two layers gets a cross-attention adapter
        **{"aligner_num_add_layers": 2, "aligner_ffn_mult": 2, "resampler_depth": 1, "resampler_num_latents": 5},
        **{"resampler_dim_head": 12, "resampler_heads": 2, "resampler_ff_mult": 2},
        "protein_encoder_config": {"max_position_embeddings": 64},
    },
    "chameleon": {
        # maps image codes to tokens
        "vq_config": {**_VQ, "num_embeddings": 4, "resolution": 16},
        "vocabulary_map": {"<image>": 251, "IMGIMGAZ": 252, "IMGIMGBZ": 253, "IMGIMGCZ": 254, "IMGIMGDZ": 255},
    },
    "idefics2": {
        "perceiver_config": {
            **{"resampler_n_latents": 3, "resampler_n_heads": 2, "num_key_value_heads": 2, "resampler_head_dim": 12},
        },
        "vision_config": {"image_size": 64},
    },
    "idefics": {"cross_layer_interval": 2, "vision_config": {"image_size": 28}},
    "granite_docling": lambda head_dim: {**_headed(head_dim), "vision_config": _GRANITE_DOCLING_VISION},
    "hyperclovax_vision_v2": {"text_config": _MULTIPLIERS},
    "granite4_vision": lambda head_dim: {
        "text_config": {"head_dim": head_dim, **_MULTIPLIERS},
        # the query transformer has one head for every 64 channels of the vision tower
        "vision_config": {"hidden_size": 128, "image_size": 32, "patch_size": 8},
        "qformer_config": {"max_position_embeddings": 64},
        **{"downsample_rate": "1/2", "deepstack_layer_map": [(0, 0), (1, 2)], "spatial_target_layers": [0, 1, 2, 3]},
    },
}

_QWEN: dict[str, Overrides] = {
    **dict.fromkeys(("exaone4_5", "internvl", "llava_onevision", "ovis2", "video_llama_3"), _headed),
    "pp_chart2table": lambda head_dim: {**_headed(head_dim), "vision_config": _sam()},
    "fast_vlm": lambda head_dim: {**_headed(head_dim), "vision_config": _CLIP},
    # heads always make up the hidden size
    "qwen2_vl": {"text_config": {"rope_parameters": _mrope(8)}, "vision_config": {"hidden_size": HIDDEN}},
    "qwen2_5_vl": {"text_config": {"rope_parameters": _mrope(8)}},
    "qwen2_5_omni_thinker": lambda head_dim: {
        "text_config": {"head_dim": head_dim, "rope_parameters": _mrope(head_dim // 2)},
        "audio_config": {"output_dim": HIDDEN},
        "vision_start_token_id": 151652,
    },
    "qwen3_vl_moe": {"text_config": {"mlp_only_layers": [0]}},
    "qwen3_omni_moe_thinker": lambda head_dim: {
        "text_config": {"head_dim": head_dim, "mlp_only_layers": [0]},
        "audio_config": {"downsample_hidden_size": 16, "output_dim": HIDDEN},
        "vision_start_token_id": 151652,
    },
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), _QWEN_3_5),
}

_GLM: dict[str, Overrides] = {
    # heads always make up the hidden size
    **{kind: {"text_config": {"rope_parameters": _mrope(8)}} for kind in ("glm4v", "glm46v", "glmga")},
    "glm_ocr": lambda head_dim: {"text_config": {"head_dim": head_dim, "rope_parameters": _mrope(head_dim // 2)}},
    "glm4v_moe": lambda head_dim: {
        # half of every head rotates
        "text_config": {
            "head_dim": head_dim,
            "rope_parameters": {**_mrope(head_dim // 4), "partial_rotary_factor": 0.5},
        },
    },
    "glm5_next": lambda head_dim: {
        "text_config": _mla(
            head_dim, 0, qk_rope_head_dim=0, qk_head_dim=16, mlp_layer_types=DENSE_FIRST, index_kpool=4
        ),
        "vision_config": {"projection_intermediate_size": 48},
    },
}

_DEEPSEEK: dict[str, Overrides] = {
    "deepseek_ocr2": {
        "vision_config": {"sam_config": _sam(downsample_channels=[24, 32])},
        "text_config": {"mlp_layer_types": DENSE_FIRST, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    },
    "unlimited_ocr": {
        "vision_config": {"sam_config": _sam(downsample_channels=(24, 32)), "encoder_config": {"image_size": 28}},
    },
    "kimi_k25": lambda head_dim: {"text_config": _mla(head_dim, 8)},
    "mistral4": lambda head_dim: _mla(head_dim, 24),
    "mistral_large4": lambda head_dim: {
        # layer 2 borrows the index of the layer before it, layers 2 and 5 its keys and values
        "text_config": _mla(
            head_dim,
            8,
            num_hidden_layers=6,
            indexer_types=["full", "full", "shared", "full", "full", "full"],
            kv_source_layers=[0, 1, 1, 3, 4, 4],
        ),
    },
}

_GEMMA: dict[str, Overrides] = {
    "shieldgemma2": {"text_config": {"layer_types": FULL_LAST}},
    "diffusion_gemma": {
        "text_config": {
            "layer_types": FULL_LAST,
            **{"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 40, "global_head_dim": 40},
        },
        "vision_config": {"position_embedding_size": 16},
        "canvas_length": 16,
    },
}

_OTHERS: dict[str, Overrides] = {
    "cohere2_vision": {"alignment_intermediate_size": 96, "vision_config": {"image_size": 64}},
    "cohere_compass": lambda head_dim: {
        "text_config": {
            "layer_types": FULL_LAST,
            # full attention without positions
            "rope_parameters": {"sliding_attention": _mrope(head_dim // 2), "full_attention": None},
        },
    },
    "cosmos3_edge": lambda head_dim: {
        "text_config": {"rope_parameters": _mrope(head_dim // 2)},
        "projector_hidden_size": 48,
    },
    "ernie4_5_vl_moe": lambda head_dim: {
        "text_config": {
            # text and vision experts
            **{"head_dim": head_dim, "rope_parameters": _mrope(head_dim // 2), "moe_intermediate_size": [40, 24]},
        },
    },
    "hunyuan_vl": lambda head_dim: {
        "text_config": {
            "head_dim": head_dim,
            # four axes
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [head_dim // 8] * 4},
        },
        "vision_config": {"max_image_size": 64, "min_image_size": 32, "text_hidden_size": HIDDEN},
    },
    "inkling2": {
        "text_config": {
            "layer_types": ["hybrid_sliding", "hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid_sliding", "hybrid"],
            **{"num_hidden_layers": 6, "unpadded_vocab_size": VOCABULARY - 6, "rel_extent": 8, "d_rel": 12},
            # blocks of the attention residuals begin at layers 0, 2 and 4
            "n_layers_per_attn_res_block": 2,
        },
        "vision_config": {"text_hidden_size": HIDDEN, "projection_hidden_dim": 48},
    },
    "inkling_mm_model": {
        "text_config": {
            "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
            **{"mlp_layer_types": DENSE_FIRST, "rel_extent": 8, "d_rel": 12},
        },
        "audio_config": {"n_mel_bins": 4, "mel_vocab_size": 16},
        "vision_config": {"patch_size": 8},
    },
    "kosmos-2": {"text_config": {"layers": 4}, "vision_config": {"image_size": 28}},
    "kosmos-2.5": {"text_config": {"layers": 4}, "vision_config": {"max_num_patches": 16}},
    "lfm2_vl": lambda head_dim: {
        "text_config": {
            "head_dim": head_dim,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        },
        "projector_hidden_size": 48,
    },
    "lfm3_vl": {
        "text_config": {
            "num_hidden_layers": 5,
            "layer_types": ["conv", "conv", "full_attention", "conv", "sliding_attention"],
        },
        "projector_hidden_size": 48,
    },
    "minimax_m3_vl": {
        "text_config": {
            "index_n_heads": 2,
            "layer_types": ["full_attention", "minimax_m3_sparse", "full_attention", "minimax_m3_sparse"],
            **{"mlp_layer_types": DENSE_FIRST, "index_block_size": 4, "index_topk_blocks": 2},
        },
        "projector_hidden_size": 48,
    },
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0], "text_hidden_size": HIDDEN}},
    "muse_glimmer": {"out_hidden_size": 128, "projector_hidden_size": 48},
    "muse_spark": {
        "text_config": {"mlp_layer_types": DENSE_FIRST, "moe_hidden_size": 48},
        "audio_config": {"patch_sizes": (4, 2), "hidden_sizes": (24, 32), "depths": (1, 1)},
        **{"out_hidden_size": 128, "projector_hidden_size": 48},
    },
    "nemotron_h_omni": {
        "text_config": {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "moe"],
            **{"mamba_num_heads": 8, "mamba_head_dim": 12, "n_groups": 2},
        },
        "vision_config": {"video_temporal_patch_size": 2, "max_img_size": 64},
        **{"vision_hidden_size": 32, "projector_hidden_size": 48},
    },
    "paddleocr_vl": lambda head_dim: {"text_config": {"rope_parameters": _mrope(head_dim // 2)}},
    "step3p7": {
        "text_config": {
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            **{"mlp_layer_types": DENSE_FIRST, "sliding_window": 8, "num_sliding_attention_heads": 6},
            "share_expert_dim": 48,
        },
    },
}

OVERRIDES: dict[str, Overrides] = {**_LLAMA, **_QWEN, **_GLM, **_DEEPSEEK, **_GEMMA, **_OTHERS}
