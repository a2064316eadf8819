"""The survey finds every writer, and the probe proves it: on one tiny model of every kind."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from excise import EditableModel, ExciseError
from excise.model.probe import leak
from zoo import build as architectures
from zoo.tiny import CONFIGS, build, random_tokens

KINDS = sorted(CONFIGS)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> EditableModel:
    return EditableModel(build(request.param), name=request.param)


def test_every_layer_has_an_attention_and_a_feed_forward_writer(model: EditableModel) -> None:
    survey = model.survey
    assert survey.layers == 4
    assert survey.hidden == 64
    for layer in range(4):
        roles = {writer.role for writer in survey.writers if writer.layer == layer}
        assert roles in ({"attention", "mlp"}, {"attention", "expert"})
    assert any(writer.role == "embedding" for writer in survey.writers)
    assert survey.coverage == 1.0


def test_leak_is_rounding_error(model: EditableModel) -> None:
    direction = torch.randn(64, generator=torch.Generator().manual_seed(5))
    assert model.exposure(direction) > 0.1
    assert model.leak() < 1e-4
    assert model.leak(direction=direction) < 1e-4


def test_the_probe_notices_any_missing_writer(model: EditableModel) -> None:
    for writer in model.survey.writers:
        assert leak(model.hf_model, model.survey.without(writer.parameter)) > 1e-3, writer.parameter


def test_the_probe_leaves_no_trace(model: EditableModel) -> None:
    tokens = random_tokens()
    before = model.hf_model(tokens).logits
    model.leak()
    assert torch.equal(model.hf_model(tokens).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf_model.modules())


@pytest.mark.parametrize(
    ("kind", "parameter", "axis", "expert_axis", "bias", "gain"),
    [
        ("llama", "model.layers.1.self_attn.o_proj.weight", 0, None, None, None),
        ("gpt2", "transformer.h.1.attn.c_proj.weight", 1, None, "transformer.h.1.attn.c_proj.bias", None),
        ("qwen3_moe", "model.layers.1.mlp.experts.down_proj", 1, 0, None, None),
        ("gpt_oss", "model.layers.1.mlp.experts.down_proj", 2, 0, "model.layers.1.mlp.experts.down_proj_bias", None),
        ("gemma2", "model.layers.1.mlp.down_proj.weight", 0, None, None, "post_feedforward_layernorm"),
        ("olmo2", "model.layers.1.self_attn.o_proj.weight", 0, None, None, "post_attention_layernorm"),
        ("falcon", "transformer.h.1.mlp.dense_4h_to_h.weight", 0, None, "dense_4h_to_h.bias", None),
    ],
)
def test_axis_expert_bias_and_gain(
    kind: str, parameter: str, axis: int, expert_axis: int | None, bias: str | None, gain: str | None
) -> None:
    survey = EditableModel(build(kind)).survey
    writer = next(writer for writer in survey.writers if writer.parameter == parameter)
    assert (writer.axis, writer.expert_axis) == (axis, expert_axis)
    assert (bias is None) == (writer.bias is None)
    assert bias is None or bias in str(writer.bias)
    assert (gain is None) == (writer.gain is None)
    assert gain is None or gain in str(writer.gain)


def test_ignoring_a_post_norm_gain_would_leak() -> None:
    """What makes the gain necessary: without it the write keeps a tenth of the direction."""
    model = EditableModel(build("gemma2"))
    blind = type(model.survey)(**{**vars(model.survey), "paths": {}})
    assert leak(model.hf_model, blind) > 0.01


def test_a_bidirectional_model_is_refused() -> None:
    config = AutoConfig.for_model(
        "bert", hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96, vocab_size=256
    )
    with pytest.raises(ExciseError, match="causal"):
        _ = EditableModel(AutoModelForCausalLM.from_config(config)).survey


def test_a_model_whose_cache_cannot_be_laid_out_is_taken_by_its_word() -> None:
    """BLT cuts bytes into patches by what follows them, and its configuration has no number of layers."""
    model = EditableModel(architectures.build("blt", seed=1))
    assert model.survey.coverage == 1.0
    assert model.leak() < 1e-6


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gpt_oss"])
def test_a_half_precision_model_is_proven_in_fp32(kind: str) -> None:
    model = EditableModel(build(kind, dtype=torch.bfloat16))
    before = {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.hf_model.state_dict().items()}
    assert model.leak() < model.leak_tolerance == 1e-4
    assert {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.hf_model.state_dict().items()} == before
