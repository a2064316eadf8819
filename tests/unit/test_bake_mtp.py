"""Heads that predict further tokens: Transformers does not load them, and baking carries them along untouched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import excise
from excise import Edit
from zoo.build import build

EXTRA = {
    "deepseek_v3": "model.layers.4.",  # one more layer than there are
    "qwen3_next": "mtp.",
    "glm4_moe": "model.layers.4.",
}


@pytest.mark.parametrize("kind", sorted(EXTRA))
def test_they_stay_as_they_are(kind: str, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    build(kind).save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    last = {key: value for key, value in tensors.items() if key.startswith("model.layers.3.")}
    extra = {EXTRA[kind] + key.removeprefix("model.layers.3."): value.clone() + 1 for key, value in last.items()}
    extra[EXTRA[kind] + "eh_proj.weight"] = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    save_file({**tensors, **extra}, base / "model.safetensors", metadata={"format": "pt"})

    model = excise.load(base)
    assert not any(writer.parameter.startswith(EXTRA[kind]) for writer in model.survey.writers)
    direction = torch.randn(64, generator=torch.Generator().manual_seed(1))
    edit = Edit.project(model.survey, direction, embedding=True)
    report = excise.bake(base, edit, out)
    assert not any(key in extra for key in report.edited)
    written = load_file(out / "model.safetensors")
    assert all(torch.equal(written[key], value) for key, value in extra.items())
    assert excise.verify(out, base=base, edit=edit).passed
    assert json.loads((out / "config.json").read_text()) == json.loads((base / "config.json").read_text())
