"""Every text-generating architecture that the installed Transformers knows, and which of them are no decoders.

The list is read from Transformers, so that a new architecture is in scope until somebody says why it is not.
"""

from __future__ import annotations

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

CAUSAL = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
VISION_LANGUAGE = tuple(sorted(set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - set(CAUSAL)))
MULTIMODAL = frozenset(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
"""Those whose checkpoints hold other towers beside the decoder; some stand in both lists."""

_ENCODER = "an encoder (masked language model)"
_ENCODER_DECODER = "an encoder-decoder"

OUT_OF_SCOPE: dict[str, str] = {
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
            *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
            *("xmod",),
        ),
        _ENCODER,
    ),
    **dict.fromkeys(
        (
            *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus"),
            *("plbart", "prophetnet", "whisper", "musicgen", "musicgen_melody", "florence2", "pix2struct", "t5gemma2"),
            *("udop", "vision-encoder-decoder", "pp_formulanet"),
        ),
        _ENCODER_DECODER,
    ),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        "a drafting helper: it runs on another model's activations, and takes no text",
    ),
    "diffusion_gemma": "a block-diffusion model (it denoises a canvas with bidirectional attention)",
    "pi0": "a robot policy: it has no language head, and needs the robot's state",
    "trocr": "the decoder of an encoder-decoder",
    "cpmant": "not causal (bidirectional over the whole prompt)",
    "xlm": "an encoder (masked or translation language model)",
    "xlnet": "not causal (a permutation language model)",
}

VARIANTS: dict[str, dict[str, object]] = {
    # Layers that are off by default, and that cannot be edited exactly.
    "qwen4_exp_text+n-grams": {"ple_layer_ids": [1, 3]},
}
"""Further configurations of an architecture: `kind+name`, and the settings that make the difference."""

IN_SCOPE = tuple(kind for kind in (*CAUSAL, *VISION_LANGUAGE) if kind not in OUT_OF_SCOPE)
