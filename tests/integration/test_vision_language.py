"""The text tower of vision-language models: surveyed, proven, baked under the checkpoint's own keys."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, Gemma3Config, LlavaConfig

import excise

_TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "head_dim": 16,
}  # fmt: skip
_VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


def gemma3() -> Gemma3Config:
    return Gemma3Config(
        text_config={**_TEXT, "sliding_window": 8},
        vision_config=_VISION,
        image_token_index=299,
        boi_token_index=298,
        eoi_token_index=297,
        mm_tokens_per_image=4,
    )


def llava() -> LlavaConfig:
    vision = {**_VISION, "model_type": "clip_vision_model", "projection_dim": 32}
    return LlavaConfig(text_config={**_TEXT, "model_type": "llama"}, vision_config=vision, image_token_index=299)


@pytest.mark.parametrize("config", [gemma3, llava], ids=lambda config: config.__name__)
def test_text_tower(config: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config()).save_pretrained(tmp_path / "base")
    model = excise.load(tmp_path / "base")
    assert model.survey.layers_path == "model.language_model.layers"  # not the longer vision tower
    assert model.leak() < 1e-4
    direction = torch.randn(64, generator=torch.Generator().manual_seed(1))
    edit = excise.Edit.project(model.survey, direction, embedding=True)
    excise.bake(tmp_path / "base", edit, tmp_path / "baked")
    report = excise.verify(tmp_path / "baked", base=tmp_path / "base", edit=edit)
    assert report.passed, report.checks
    assert excise.load(tmp_path / "baked").exposure(direction) < 1e-4
