"""Without the weights: the same survey from the configuration alone, whatever the size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig
from typer.testing import CliRunner

from excise import EditableModel
from excise.cli.app import app
from excise.errors import ModelError, SurveyError
from excise.model.outline import outline
from excise.model.shapes import ShapesOnly, outline_of, without_dispatch
from excise.model.survey import survey
from zoo.build import auto_class_of, build, config_of

KINDS = (
    *("llama", "gpt2", "gemma2", "gemma3n_text", "gpt_oss", "dbrx", "jetmoe", "deepseek_v3", "deepseek_v4", "step3p7"),
    *("mamba", "qwen3_next", "hrm_text", "reformer", "idefics", "smolvlm", "minimax", "inkling2_text", "kimi_k25"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_alone_gives_the_same_writers(kind: str) -> None:
    whole = EditableModel(build(kind), allow_partial=True).survey
    with torch.device("meta"):
        model = without_dispatch(auto_class_of(kind).from_config(config_of(kind)))
    bare = survey(model, identity=whole.identity)
    assert bare.writers == whole.writers
    assert (bare.hidden, bare.layer_names, bare.unresolved) == (whole.hidden, whole.layer_names, whole.unresolved)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "olmo2", "glm4", "exaone4", "bloom", "gpt_oss", "openai-gpt"])
def test_a_large_model_is_surveyed_by_its_shapes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = EditableModel(build(kind))
    monkeypatch.setattr("excise.model.survey.LARGE", 1)
    large = EditableModel(build(kind))
    passes: list[str] = []
    handle = large.hf_model.get_input_embeddings().register_forward_hook(lambda *_: passes.append("one"))
    found = large.survey
    handle.remove()
    assert passes == (
        ["one"] if kind == "openai-gpt" else []
    )  # its stream is normalised: the gains are not a norm's own
    assert found.writers == small.survey.writers
    direction = torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    for writer in found.writers:
        ours, theirs = (
            torch.nn.functional.normalize(survey.at_writer(writer, direction), dim=-1)
            for survey in (found, small.survey)
        )
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert large.leak() < 1e-6


def test_what_depends_on_values_is_said() -> None:
    with torch.device("meta"):
        model = without_dispatch(auto_class_of("blt").from_config(config_of("blt")))
    with pytest.raises(SurveyError, match="without its weights"):
        _ = EditableModel(model).survey


LARGE = {
    "llama": {
        **{"hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672, "vocab_size": 128256},
        **{"num_attention_heads": 64, "num_key_value_heads": 8},
    },
    "deepseek_v3": {},  # 671 billion parameters by default
}


@pytest.mark.parametrize(
    ("kind", "writers"), [("llama", {"attention": 80, "mlp": 80}), ("deepseek_v3", {"attention": 61, "expert": 58})]
)
def test_models_that_fit_on_no_machine(tmp_path: Path, kind: str, writers: dict[str, int]) -> None:
    AutoConfig.for_model(kind, **LARGE[kind]).save_pretrained(tmp_path)
    model = outline(tmp_path)
    assert sum(parameter.numel() for parameter in model.hf_model.parameters()) > 6e10
    assert model.survey.coverage == 1
    for role, count in writers.items():
        assert sum(writer.role == role for writer in model.survey.writers) == count
    with pytest.raises(ModelError, match="no weights"):
        model.leak()


def test_the_command_shows_the_list_and_says_that_nothing_is_proven(tmp_path: Path) -> None:
    config_of("mixtral").save_pretrained(tmp_path)
    done = CliRunner().invoke(app, ["inspect", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["leak"] is None
    assert len(told["writers"]) == 9
    assert "no leak was measured" in CliRunner().invoke(app, ["inspect", str(tmp_path)]).stdout


def test_no_weights_reads_none(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert CliRunner().invoke(app, ["inspect", str(tmp_path)]).exit_code == 1
    assert CliRunner().invoke(app, ["inspect", str(tmp_path), "--no-weights"]).exit_code == 0


def test_of_a_model_on_the_hub_only_the_small_files_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_of("llama").save_pretrained(tmp_path)
    wanted: list[str] = []

    def download(name: str, *, allow_patterns: list[str], **_: object) -> str:
        assert name == "someone/model"
        wanted.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("excise.model.locate.snapshot_download", download)
    done = CliRunner().invoke(app, ["inspect", "someone/model", "--no-weights", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["layers"] == 4
    assert "*.json" in wanted
    assert not any("safetensors" in pattern for pattern in wanted)


def test_a_directory_without_weights_is_refused_where_they_are_needed(tmp_path: Path) -> None:
    config_of("llama").save_pretrained(tmp_path)
    done = CliRunner().invoke(app, ["inspect", str(tmp_path), "--weights"])
    assert done.exit_code == 1
    assert "model.safetensors" in done.stderr


def test_an_outline_of_a_changed_model_is_none() -> None:
    model = build("llama")
    assert outline_of(model) is not None
    model.model.layers[0].mlp.extra = torch.nn.Parameter(torch.ones(3))
    assert outline_of(model) is None


def test_reads_of_values_that_are_not_there() -> None:
    with ShapesOnly():
        missing = torch.zeros(4, 3, device="meta")
        assert missing.sum().item() == 0
        assert bool((missing > 0).any())
        assert [row.tolist() for row in (missing > 0).nonzero()] == [[0, 0], [2, 1]]
        assert missing[missing > 0].shape == (2,)
        assert (missing + torch.ones(3)).is_meta
        assert [part.shape[0] for part in missing.split([0, 0], dim=0)] == [4, 0]
        mask = torch.tensor([True, True, True])
        assert torch.where(mask, missing, missing.new_ones(3)).shape == (4, 3)
    with pytest.raises(RuntimeError):
        torch.zeros(1, device="meta").item()
