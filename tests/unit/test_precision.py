"""Large half-precision models are proven as exactly as small ones, without a copy of their weights."""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from excise import EditableModel
from excise.errors import SurveyError
from excise.model.precision import with_wide_stream
from excise.model.probe import leak
from zoo.build import build

KINDS = ("llama", "gemma2", "gpt_oss", "mixtral", "mamba2", "muse_spark", "deepseek_v3", "gpt2")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as large."""
    monkeypatch.setattr("excise.model.precision.LARGE", 1)
    monkeypatch.setattr("excise.model.survey.LARGE", 1)
    monkeypatch.setattr("excise.model.precision.SMALL_MATRIX", 2000)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_is_exact(kind: str) -> None:
    model = EditableModel(build(kind).to(torch.bfloat16))
    before = {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.hf_model.state_dict().items()}
    assert model.leak() < 1e-6
    assert model.leak_tolerance == 1e-4
    for writer in model.survey.writers:
        assert leak(model.hf_model, model.survey.without(writer.parameter)) > 1e-4, writer.parameter
    assert {name: (tensor.data_ptr(), tensor.dtype) for name, tensor in model.hf_model.state_dict().items()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf_model.modules())


@pytest.mark.usefixtures("large")
def test_code_that_asks_for_one_dtype_is_proven_more_coarsely() -> None:
    class Strict(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, inputs: Tensor) -> Tensor:
            if inputs.dtype != torch.bfloat16:
                raise RuntimeError(f"expected bfloat16, got {inputs.dtype}")
            return self.inner(inputs)

    hf_model = build("llama").to(torch.bfloat16)
    for layer in hf_model.model.layers:
        layer.mlp = Strict(layer.mlp)
    model = EditableModel(hf_model)
    assert 1e-5 < model.leak() < model.leak_tolerance == 2e-2


def test_only_large_matrices_keep_their_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("excise.model.precision.SMALL_MATRIX", 5000)
    model = build("llama").to(torch.bfloat16)
    with with_wide_stream(model):
        kept = {name for name, value in model.named_parameters() if value.dtype == torch.bfloat16}
    assert kept == {name for name, value in model.named_parameters() if value.numel() >= 5000}
    assert kept


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral"])
def test_an_offloaded_model_is_surveyed_by_its_outline_and_probed_as_it_is(kind: str) -> None:
    whole = EditableModel(build(kind)).survey
    hf_model = cpu_offload(build(kind), execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in hf_model.parameters())
    model = EditableModel(hf_model)
    assert model.has_weights
    assert model.survey.writers == whole.writers
    assert model.leak() < 1e-6
    assert {parameter.dtype for parameter in hf_model.parameters()} == {torch.float32}


def test_an_offloaded_model_whose_weights_are_needed_is_refused() -> None:
    hf_model = cpu_offload(build("openai-gpt"), execution_device=torch.device("cpu"))
    with pytest.raises(SurveyError, match="offloaded"):
        _ = EditableModel(hf_model).survey
