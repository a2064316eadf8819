"""Verification passes what baking wrote, and notices every kind of damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from excise import Edit, EditableModel
from excise.bake import VerifyReport, bake, verify
from excise.edit import Projection
from excise.model.checkpoint import Checkpoint
from zoo.tiny import build

KEY = "model.layers.2.mlp.down_proj.weight"


def made(folder: Path, kind: str, dtype: torch.dtype, strength: float = 1.0, norm: str = "none") -> tuple[Path, Edit]:
    model = build(kind, dtype=dtype)
    model.save_pretrained(folder / "base", max_shard_size="100KB")
    direction = torch.randn(64, generator=torch.Generator().manual_seed(2))
    editable = EditableModel(model, path=folder / "base")
    edit = Edit.project(editable.survey, direction, strength=strength, norm=norm)  # type: ignore[arg-type]
    bake(folder / "base", edit, folder / "out")
    return folder / "base", edit


def failed(report: VerifyReport) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize("norm", ["none", "column"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "mixtral", "gpt_oss", "qwen3"])
def test_a_good_bake_passes(tmp_path: Path, kind: str, norm: str) -> None:
    base, edit = made(tmp_path, kind, torch.bfloat16, norm=norm)
    report = verify(tmp_path / "out", base=base, edit=edit)
    assert report.passed, report.checks
    assert report.leak is not None
    assert 0 < report.leak < 2e-3
    assert report.logits_difference is not None
    assert 0 < report.logits_difference.relative < report.logits_difference.bound
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["passed"] is True
    assert {check["name"] for check in plain["checks"]} >= {"side files", "untouched tensors", "edited tensors", "leak"}


def test_without_full_strength_there_is_no_leak_to_measure(tmp_path: Path) -> None:
    base, edit = made(tmp_path, "llama", torch.float32, strength=0.7)
    report = verify(tmp_path / "out", base=base, edit=edit)
    assert report.passed, report.checks
    assert report.leak is None


def test_without_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, edit = made(tmp_path, "llama", torch.float16)
    monkeypatch.setattr("excise.bake.verification.compare", None)
    edit.save(tmp_path / "edit.safetensors")
    report = verify(tmp_path / "out", base=str(base), edit=tmp_path / "edit.safetensors", live=False)
    assert report.passed, report.checks
    assert (report.leak, report.logits_difference) == (None, None)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Edit]:
    folder = tmp_path_factory.mktemp("good")
    base, edit = made(folder, "llama", torch.bfloat16)
    for name in ("LICENSE", "README.md"):
        (base / name).write_text("the base's own")
        shutil.copy(base / name, folder / "out" / name)
    return base, folder / "out", edit


def change(out: Path, key: str, action: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = out / Checkpoint.open(out).tensors[key].shard
    tensors = load_file(path)
    tensors[key] = action(tensors[key])
    save_file(tensors, path, metadata={"format": "pt"})


def nudge(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0, 0] += 1
    return tensor


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "an edited weight": (lambda out: change(out, KEY, nudge), "edited tensors"),
    "an untouched weight": (lambda out: change(out, "model.layers.2.mlp.up_proj.weight", nudge), "untouched tensors"),
    "one bit": (lambda out: flip(out / Checkpoint.open(out).tensors["model.norm.weight"].shard), "untouched tensors"),
    "a dtype": (lambda out: change(out, KEY, torch.Tensor.half), "headers"),
    "a shape": (lambda out: change(out, KEY, lambda tensor: tensor[:1]), "headers"),
    "a truncated shard": (lambda out: flip_length(out / Checkpoint.open(out).shards[0].name), "headers"),
    "a missing shard": (lambda out: (out / Checkpoint.open(out).shards[0].name).unlink(), "headers"),
    "a missing licence": (lambda out: (out / "LICENSE").unlink(), "side files"),
    "another licence": (lambda out: (out / "LICENSE").write_text("other"), "side files"),
    "the configuration": (lambda out: (out / "config.json").write_text("{}"), "side files"),
}


def flip_length(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_damage_is_noticed(tmp_path: Path, good: tuple[Path, Path, Edit], kind: str) -> None:
    base, out, edit = good
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    damage, name = DAMAGE[kind]
    damage(copy)
    report = verify(copy, base=base, edit=edit)
    assert name in failed(report), report.checks
    assert report.logits_difference is None


def test_a_new_model_card_is_no_damage(tmp_path: Path, good: tuple[Path, Path, Edit]) -> None:
    base, out, edit = good
    shutil.copytree(out, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("a new card")
    (tmp_path / "copy" / "report.html").write_text("more")
    assert verify(tmp_path / "copy", base=base, edit=edit, live=False).passed


def test_another_edit_is_noticed(good: tuple[Path, Path, Edit]) -> None:
    base, out, edit = good
    assert failed(verify(out, base=base, edit=0.9 * edit)) == {"edited tensors"}
    assert failed(verify(out, base=base, edit=Edit(edit.sites[1:], edit.identity))) == {"untouched tensors"}


def test_the_logits_alone_notice_a_missing_writer(good: tuple[Path, Path, Edit]) -> None:
    from excise.bake.live import compare, roundoff

    base, out, edit = good
    options = {"exact": True, "unit": roundoff(torch.bfloat16)}
    assert within(compare(out, base, edit, **options).difference)
    for site in edit.sites[1:4]:
        partial = Edit(tuple(other for other in edit.sites if other is not site), edit.identity)
        assert not within(compare(out, base, partial, **options).difference), site.writer.parameter


def within(difference: object) -> bool:
    return difference.relative <= difference.bound  # type: ignore[attr-defined]


def test_the_leak_notices_a_direction_that_is_left(good: tuple[Path, Path, Edit]) -> None:
    from excise.bake.live import compare, roundoff

    base, _, edit = good  # the base is taken for the baked model
    result = compare(base, base, edit, exact=True, unit=roundoff(torch.bfloat16))
    assert result.leak is not None
    assert result.leak > 10 * result.leak_bound
    assert result.leak_sites == sum(isinstance(site.changes[0], Projection) for site in edit.sites)


def test_the_models_dtype_when_fp32_is_too_large(
    good: tuple[Path, Path, Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out, edit = good
    monkeypatch.setattr("excise.bake.verification._EXACT", 0)
    report = verify(out, base=base, edit=edit)
    assert report.passed, report.checks
    assert report.logits_difference is not None
    assert report.logits_difference.dtype == "bfloat16"
