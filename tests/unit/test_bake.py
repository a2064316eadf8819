"""Baking: what is written equals the operators applied to the loaded weights; the rest is the base's own bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import excise
from excise import Edit, EditableModel
from excise.bake import BakeReport, bake, verify
from excise.bake.write import RECORD
from excise.edit import LowRank, SiteEdit, operators
from excise.model.checkpoint import Checkpoint
from zoo.tiny import CONFIGS, build, random_tokens

DIRECTIONS = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SIDE_FILES = {
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"free\r\n",
    "modeling_custom.py": b"x = 1",
    "assets/logo.png": b"\x89",
}


def save_base(model: PreTrainedModel, folder: Path, *, shards: bool = False) -> Path:
    model.save_pretrained(folder, max_shard_size="60KB" if shards else "5GB")
    for name, content in SIDE_FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def save_as_loaded(model: PreTrainedModel, folder: Path, rename: Callable[[str], str] = str) -> Path:
    """Keys named as the parameters of the loaded model: expert banks stay fused."""
    model.config.save_pretrained(folder)
    tensors = {rename(name): tensor.contiguous() for name, tensor in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def project(model: PreTrainedModel, **options: object) -> Edit:
    """An edit of every writer: two directions, part strength, embeddings included."""
    survey = EditableModel(model).survey
    return Edit.project(survey, DIRECTIONS, **{"strength": 0.9, "embedding": True, **options})  # type: ignore[arg-type]


def edited_weights(base: Path, edit: Edit) -> dict[str, torch.Tensor]:
    """What the loaded base becomes when the operators act on its parameters."""
    model = AutoModelForCausalLM.from_pretrained(base)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for site in edit.sites:
        weight = parameters[site.writer.parameter]
        weight.data = operators.apply(weight.data, site.changes, axis=site.writer.axis)
        if site.writer.bias is not None:
            bias = parameters[site.writer.bias]
            bias.data = operators.apply_bias(bias.data, site.changes)
    return {name: tensor.data for name, tensor in parameters.items()}


def assert_baked(base: Path, out: Path, edit: Edit, report: BakeReport) -> None:
    expected = edited_weights(base, edit)
    baked = dict(AutoModelForCausalLM.from_pretrained(out).named_parameters(remove_duplicate=False))
    assert set(baked) == set(expected)
    for name, tensor in expected.items():
        step = torch.finfo(tensor.dtype).eps * tensor.abs().max()
        assert baked[name].dtype == tensor.dtype
        assert (baked[name].float() - tensor.float()).abs().max() <= step, name
    assert_rest_untouched(base, out, report)


def assert_rest_untouched(base: Path, out: Path, report: BakeReport) -> None:
    mine, theirs = Checkpoint.open(base), Checkpoint.open(out)
    assert [shard.tensors for shard in mine.shards] == [shard.tensors for shard in theirs.shards]
    for one, other in zip(mine.shards, theirs.shards, strict=True):
        before, after = one.path.read_bytes(), other.path.read_bytes()
        assert before[: one.header] == after[: other.header]
        for entry in one.tensors:
            part = slice(entry.start, entry.start + entry.size)
            assert (before[part] == after[part]) == (entry.key not in report.edited), entry.key
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()
    } | {RECORD}
    for name in report.copied:
        assert (base / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_every_kind_of_writer(tmp_path: Path, kind: str) -> None:
    model = build(kind, dtype=torch.bfloat16)
    base = save_base(model, tmp_path / "base")
    edit = project(model, norm="column" if kind == "llama" else "none")
    report = bake(base, edit, tmp_path / "out")
    assert_baked(base, tmp_path / "out", edit, report)
    assert set(report.edited.values()) >= {site.writer.parameter for site in edit.sites}


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("norm", ["none", "column"])
def test_dtypes_in_shards(tmp_path: Path, dtype: str, norm: str) -> None:
    model = build("llama", dtype=DTYPES[dtype])
    base = save_base(model, tmp_path / "base", shards=True)
    edit = project(model, norm=norm)
    report = bake(base, edit, tmp_path / "out")
    assert len(Checkpoint.open(base).shards) > 2
    assert_baked(base, tmp_path / "out", edit, report)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("fused", [False, True])
def test_expert_banks_in_both_layouts(tmp_path: Path, kind: str, fused: bool) -> None:
    model = build(kind)
    base = (save_as_loaded if fused else save_base)(model, tmp_path / "base")
    edit = project(model)
    report = bake(base, edit, tmp_path / "out")
    assert_baked(base, tmp_path / "out", edit, report)
    experts = [key for key, parameter in report.edited.items() if parameter.endswith("experts.down_proj")]
    assert len(experts) == (4 if fused or kind == "gpt_oss" else 16)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe", "gpt_oss"])
def test_low_rank_changes_reach_their_expert(tmp_path: Path, kind: str) -> None:
    model = build(kind)
    generator = torch.Generator().manual_seed(5)
    sites = []
    parameters = dict(model.named_parameters())
    for site in project(model, embedding=False).sites:
        weight, writer = parameters[site.writer.parameter], site.writer
        bank = weight.shape[:1] if writer.expert_axis == 0 else ()
        width = weight.numel() // weight.shape[writer.axis] // (bank[0] if bank else 1)
        left, right = (0.1 * torch.randn(*bank, *size, generator=generator) for size in ((64, 2), (2, width)))
        sites.append(SiteEdit(writer, (LowRank(left, right), *site.changes)))
    edit = Edit(tuple(sites), EditableModel(model).identity)
    base = save_base(model, tmp_path / "base")
    assert_baked(base, tmp_path / "out", edit, bake(base, edit, tmp_path / "out"))


def test_small_blocks_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("qwen3_moe", dtype=torch.bfloat16)
    base = save_as_loaded(model, tmp_path / "base")
    edit = project(model, norm="column")
    bake(base, edit, tmp_path / "whole")
    monkeypatch.setattr("excise.bake.formats.plain._BLOCK", 700)
    monkeypatch.setattr("excise.bake.formats.plain._PART", 130)
    assert_baked(base, tmp_path / "blocks", edit, bake(base, edit, tmp_path / "blocks"))
    assert verify(tmp_path / "whole", base=base, edit=edit, live=False).passed


def test_tied_embeddings_have_one_key(tmp_path: Path) -> None:
    model = build("qwen3")
    base = save_base(model, tmp_path / "base")
    edit = project(model)
    report = bake(base, edit, tmp_path / "out")
    assert "lm_head.weight" not in report.edited
    assert_baked(base, tmp_path / "out", edit, report)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_separate_copy_of_a_tied_head_changes_with_it(tmp_path: Path) -> None:
    model = build("qwen3")
    base = save_base(model, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    report = bake(base, project(model), tmp_path / "out")
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(report.edited)
    baked = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(baked["lm_head.weight"], baked["model.embed_tokens.weight"])
    assert not torch.equal(baked["lm_head.weight"], tensors["lm_head.weight"])


def test_keys_without_the_prefix_of_the_base_model(tmp_path: Path) -> None:
    model = build("gpt2")
    base = save_as_loaded(model, tmp_path / "base", lambda name: name.removeprefix("transformer."))
    edit = project(model)
    report = bake(base, edit, tmp_path / "out")
    assert "h.0.attn.c_proj.weight" in report.edited
    assert_baked(base, tmp_path / "out", edit, report)


def test_the_package_is_callable(tmp_path: Path) -> None:
    import excise.bake

    model = build("llama")
    base = save_base(model, tmp_path / "base")
    assert isinstance(excise.bake(base, project(model), out=tmp_path / "one"), BakeReport)  # type: ignore[operator]
    module = __import__("sys").modules["excise.bake"]
    assert isinstance(module(base, project(model), out=tmp_path / "two"), BakeReport)


def test_the_same_bake_writes_the_same_bytes(tmp_path: Path) -> None:
    model = build("llama", dtype=torch.bfloat16)
    base = save_base(model, tmp_path / "base", shards=True)
    edit = project(model)
    edit.save(tmp_path / "edit.safetensors")
    bake(base, edit, tmp_path / "one")
    bake(str(base), tmp_path / "edit.safetensors", tmp_path / "two")
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_an_empty_edit_copies_the_model(tmp_path: Path) -> None:
    model = build("llama")
    base = save_base(model, tmp_path / "base", shards=True)
    report = bake(base, Edit.empty(EditableModel(model).survey), tmp_path / "out")
    assert (report.edited, report.edited_bytes) == ({}, 0)
    for shard in Checkpoint.open(base).shards:
        assert shard.path.read_bytes() == (tmp_path / "out" / shard.name).read_bytes()


def test_other_copies_of_the_weights_stay_behind(tmp_path: Path) -> None:
    model = build("llama")
    base = save_base(model, tmp_path / "base")
    others = ["pytorch_model.bin", "original/consolidated.00.pth", "model.gguf", "onnx/model.onnx"]
    for name in others:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(b"x")
    save_file(load_file(base / "model.safetensors"), base / "model.fp32.safetensors")
    save_file({"layers.0.wo": torch.zeros(2)}, base / "consolidated.safetensors")
    save_file({"mtp.0.weight": torch.ones(2)}, base / "mtp.safetensors")
    (base / ".git").mkdir()
    (base / ".git" / "config").write_text("x")
    report = bake(base, project(model), tmp_path / "out")
    assert set(report.skipped) == {*others, "model.fp32.safetensors", "consolidated.safetensors"}
    assert "mtp.safetensors" in report.copied
    assert not any((tmp_path / "out" / name).exists() for name in (*report.skipped, ".git"))
    assert verify(tmp_path / "out", base=base, edit=project(model), live=False).passed


def test_the_record_says_what_was_done(tmp_path: Path) -> None:
    model = build("llama")
    base = save_base(model, tmp_path / "base")
    edit = project(model).with_record(provenance={"seed": 4}, scores={"rate": 0.0})
    report = bake(base, edit, tmp_path / "out")
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["excise"] == excise.__version__
    assert record["edit"]["provenance"] == {"seed": 4}
    assert len(record["edit"]["sites"]) == len(edit.sites)
    assert record["edited"] == sorted(report.edited)
    assert json.loads(json.dumps(report.to_json()))["bytes"] == Checkpoint.open(base).size


def test_baking_a_baked_model(tmp_path: Path) -> None:
    model = build("llama")
    base = save_base(model, tmp_path / "base")
    bake(base, project(model), tmp_path / "once")
    again = excise.load(tmp_path / "once")
    edit = Edit.project(again.survey, torch.randn(64))
    report = bake(again, edit, tmp_path / "twice")
    assert verify(tmp_path / "twice", base=again, edit=edit, live=False).passed
    assert_rest_untouched_but_record(tmp_path / "once", tmp_path / "twice", report)


def assert_rest_untouched_but_record(base: Path, out: Path, report: BakeReport) -> None:
    assert (base / RECORD).read_bytes() != (out / RECORD).read_bytes()
    for name in set(report.copied) - {RECORD}:
        assert (base / name).read_bytes() == (out / name).read_bytes()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "gpt_oss", "gemma2"])
def test_baked_logits_equal_the_live_edit(tmp_path: Path, kind: str) -> None:
    model = build(kind)
    base = save_base(model, tmp_path / "base")
    editable = EditableModel(model)
    edit = project(model)
    bake(base, edit, tmp_path / "out")
    tokens = random_tokens()
    with editable.edited(edit):
        live = model(tokens).logits
    baked = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(tokens).logits
    assert (live - baked).abs().max() < 1e-5 * live.abs().max()
