"""Evidence: what a user vouches for where the survey cannot see, and how wrong evidence shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from excise import EditableModel
from excise.cli.app import app
from excise.demo import MODEL_PATH
from excise.errors import InputError, SurveyError
from excise.model.evidence import Evidence, read_evidence
from zoo.build import SQUARE, build


class Fused(torch.autograd.Function):
    """A product with a backward pass of its own, as fused kernels have: autograd shows nothing of its inside."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return inputs @ weight + bias

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ ctx.saved_tensors[0].T, None, None


class FusedOut(nn.Module):
    """An output projection stored as [in, out], behind such an operation."""

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.fused = nn.Parameter(projection.weight.detach().T.clone())
        self.shift = nn.Parameter(0.3 * torch.randn(projection.out_features))

    def forward(self, inputs: Tensor) -> Tensor:
        return Fused.apply(inputs, self.fused, self.shift)


WRITER = Evidence(
    parameter="model.layers.*.self_attn.o_proj.fused",
    axis=1,
    role="attention",
    bias="model.layers.*.self_attn.o_proj.shift",
)


def fused(*evidence: Evidence, allow_partial: bool = False) -> EditableModel:
    """A tiny Llama whose output projections are square, fused and transposed."""
    model = build("llama", head_dim=SQUARE)
    for layer in model.model.layers:
        layer.self_attn.o_proj = FusedOut(layer.self_attn.o_proj)
    return EditableModel(model, name="fused", evidence=evidence, allow_partial=allow_partial)


def test_what_cannot_be_seen_is_refused_by_name() -> None:
    model = fused(allow_partial=True)
    assert model.survey.coverage < 1
    assert {name for item in model.survey.unresolved for name in item.parameters} >= {
        f"model.layers.{layer}.self_attn.o_proj.fused" for layer in range(4)
    }
    with pytest.raises(SurveyError, match=r"operation of the model's own \(Fused.*o_proj\.fused"):
        _ = fused().survey


def test_evidence_makes_the_survey_whole() -> None:
    model = fused(WRITER)
    proof = model.prove().required()
    assert proof.leak < 1e-6
    writer = next(
        writer for writer in model.survey.writers if writer.parameter == "model.layers.2.self_attn.o_proj.fused"
    )
    assert (writer.layer, writer.role, writer.axis) == (2, "attention", 1)
    assert writer.bias == "model.layers.2.self_attn.o_proj.shift"


@pytest.mark.parametrize("wrong", [{"axis": 0}, {"bias": None}])
def test_wrong_evidence_shows_as_a_leak(wrong: dict[str, object]) -> None:
    proof = fused(WRITER.model_copy(update=wrong)).prove()
    assert proof.leak > 1e-3
    assert not proof.holds


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (WRITER.model_copy(update={"parameter": "model.layers.*.nothing"}), "no such parameter"),
        (WRITER.model_copy(update={"parameter": "model.layers.*.mlp.up_proj.weight", "axis": 0}), "axis 0"),
        (WRITER.model_copy(update={"axis": 2}), "axis 2"),
        (WRITER.model_copy(update={"bias": "model.layers.*.nothing"}), "bias model.layers.0.nothing"),
    ],
)
def test_evidence_that_does_not_fit_is_an_error(entry: Evidence, said: str) -> None:
    with pytest.raises(InputError, match=said):
        _ = fused(entry).survey


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[writer]]\nparameter = 1", "writer.0.parameter"),
        ("[[writer]]\nparameter = 'a'\naxis = 0\nrole = 'other'", "writer.0.role"),
        ("[[writer]]\nparameter = 'a'\naxis = 0\nrole = 'mlp'\nlayer = 3", "writer.0.layer"),
        ("", "writer"),
        ("[[writer", "not a TOML file"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "evidence.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_evidence(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_evidence(tmp_path / "nothing.toml")


def test_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "evidence.toml"
    path.write_text('[[writer]]\nparameter = "model.layers.*.mlp.down_proj.weight"\naxis = 0\nrole = "mixer"\n')
    done = CliRunner().invoke(app, ["inspect", str(MODEL_PATH), "--evidence", str(path), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert {writer["role"] for writer in told["writers"] if "down_proj" in writer["parameter"]} == {"mixer"}
    assert told["leak"] < 1e-6
