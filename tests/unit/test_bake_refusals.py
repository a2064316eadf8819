"""What baking refuses, and that nothing is left behind when it fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from excise import Edit, EditableModel
from excise.bake import bake, staging, write
from excise.edit import LowRank, SiteEdit
from excise.errors import (
    CheckpointError,
    DiskFullError,
    EditError,
    EditMismatchError,
    ExciseError,
    InputError,
    ModelError,
    OutputExistsError,
)
from excise.model.checkpoint import Checkpoint
from zoo.tiny import build


@pytest.fixture
def base(tmp_path: Path) -> Path:
    build("llama").save_pretrained(tmp_path / "base", max_shard_size="100KB")
    return tmp_path / "base"


@pytest.fixture
def edit(base: Path) -> Edit:
    model = EditableModel(build("llama"), path=base)
    return Edit.project(model.survey, torch.ones(64), embedding=True)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "out"


def left_behind(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir()] if out.parent.exists() else []


def refused(kind: type[ExciseError], message: str, call: Callable[[], object], out: Path) -> None:
    with pytest.raises(kind, match=message) as error:
        call()
    assert error.value.hint
    assert left_behind(out) == []


def test_an_output_that_exists(base: Path, edit: Edit, tmp_path: Path) -> None:
    for name in ("directory", "file", "link"):
        path = tmp_path / name
        {"directory": path.mkdir, "file": path.touch, "link": lambda path=path: path.symlink_to("gone")}[name]()
        with pytest.raises(OutputExistsError, match="exists"):
            bake(base, edit, path)
        assert os.path.lexists(path)


def test_an_output_inside_the_base(base: Path, edit: Edit) -> None:
    with pytest.raises(InputError, match="inside the model's own directory"):
        bake(base, edit, base / "edited")
    assert not (base / "edited").exists()


def test_a_missing_model_or_edit(base: Path, edit: Edit, out: Path) -> None:
    refused(ModelError, "no directory", lambda: bake(base / "nothing", edit, out), out)
    refused(EditError, "no edit file", lambda: bake(base, base / "nothing.safetensors", out), out)


def test_a_model_from_memory(edit: Edit, out: Path) -> None:
    refused(CheckpointError, "came from memory", lambda: bake(EditableModel(build("llama")), edit, out), out)


def test_an_edit_for_another_architecture(base: Path, out: Path) -> None:
    other = Edit.project(EditableModel(build("mixtral")).survey, torch.ones(64))
    refused(EditMismatchError, "not the architecture", lambda: bake(base, other, out), out)
    refused(EditMismatchError, "not the architecture", lambda: bake(base, other, out, force=True), out)


def test_an_edit_for_other_weights_needs_force(base: Path, edit: Edit, out: Path) -> None:
    other = replace(edit, identity=replace(edit.identity, checkpoint_hash="other"))
    refused(EditMismatchError, "other weights", lambda: bake(base, other, out), out)
    bake(base, other, out, force=True)
    assert (out / "config.json").is_file()


def test_an_edit_of_parameters_that_are_not_there(base: Path, edit: Edit, out: Path) -> None:
    site = next(site for site in edit.sites if site.writer.role == "mlp")
    for writer in (
        replace(site.writer, parameter="model.layers.77.mlp.down_proj.weight"),
        replace(site.writer, bias="model.layers.0.mlp.down_proj.bias"),
        replace(site.writer, axis=1),
    ):
        wrong = replace(edit, sites=(SiteEdit(writer, site.changes),))
        refused(EditMismatchError, r"does not have|width", lambda wrong=wrong: bake(base, wrong, out), out)
    wrong = replace(edit, sites=(SiteEdit(site.writer, (LowRank(torch.ones(64, 1), torch.ones(2, 1, 3)),)),))
    refused(CheckpointError, "does not fit", lambda: bake(base, wrong, out), out)


def test_two_writers_of_one_tensor(base: Path, edit: Edit, out: Path) -> None:
    twice = replace(edit, sites=(*edit.sites, edit.sites[-1]))
    refused(CheckpointError, "belongs to two writers", lambda: bake(base, twice, out), out)


def test_a_truncated_shard(base: Path, edit: Edit, out: Path) -> None:
    shard = Checkpoint.open(base).shards[-1].path
    shard.write_bytes(shard.read_bytes()[:-10])
    refused(CheckpointError, "truncated", lambda: bake(base, edit, out), out)


def test_a_missing_tensor(base: Path, edit: Edit, out: Path) -> None:
    for shard in Checkpoint.open(base).shards:
        tensors = load_file(shard.path)
        if tensors.pop("model.layers.2.mlp.down_proj.weight", None) is not None:
            save_file(tensors, shard.path)
    (base / "model.safetensors.index.json").write_text(
        (base / "model.safetensors.index.json")
        .read_text()
        .replace("model.layers.2.mlp.down_proj", "model.layers.2.gone")
    )
    refused(CheckpointError, "holds model.layers.2.gone", lambda: bake(base, edit, out), out)


def test_a_tensor_of_another_shape(base: Path, edit: Edit, out: Path) -> None:
    replaced = None
    for shard in Checkpoint.open(base).shards:
        tensors = load_file(shard.path)
        if "model.layers.2.mlp.down_proj.weight" in tensors:
            tensors["model.layers.2.mlp.down_proj.weight"] = replaced = torch.zeros(64, 5)
            save_file(tensors, shard.path)
    assert replaced is not None
    refused(CheckpointError, "the model needs", lambda: bake(base, edit, out, force=True), out)


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float8_e4m3fn, False), (torch.bfloat16, True), (torch.int8, False)]
)
def test_quantised_weights(base: Path, edit: Edit, out: Path, dtype: torch.dtype, scale: bool) -> None:
    key = "model.layers.2.mlp.down_proj.weight"
    for shard in Checkpoint.open(base).shards:
        tensors = load_file(shard.path)
        if key in tensors:
            tensors[key] = tensors[key].to(dtype)
            if scale:
                tensors[f"{key}_scale_inv"] = torch.ones(1, 1)
            save_file(tensors, shard.path)
    refused(CheckpointError, "cannot be edited in place yet", lambda: bake(base, edit, out, force=True), out)


def test_a_weight_that_is_not_finite(base: Path, edit: Edit, out: Path) -> None:
    key = "model.layers.2.mlp.down_proj.weight"
    shard = base / Checkpoint.open(base).tensors[key].shard
    tensors = load_file(shard)
    tensors[key][3, 3] = float("nan")
    save_file(tensors, shard)
    refused(CheckpointError, "NaN or infinity", lambda: bake(base, edit, out, force=True), out)


def test_too_little_room_is_seen_before_anything_is_written(
    base: Path, edit: Edit, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = staging.shutil.disk_usage(base)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    refused(DiskFullError, "MB free", lambda: bake(base, edit, out), out)


def test_a_disk_that_fills_up(base: Path, edit: Edit, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "_write_all", full)
    refused(DiskFullError, "filled up", lambda: bake(base, edit, out), out)


def test_a_directory_that_cannot_be_written(base: Path, edit: Edit, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be used"):
        bake(base, edit, tmp_path / "file" / "out")


@pytest.mark.parametrize("moment", range(8))
def test_an_interruption_leaves_nothing(
    base: Path, edit: Edit, out: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    calls = iter(range(100))

    def progress(*_: object) -> None:
        if next(calls) == moment * 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bake(base, edit, out, progress=progress)
    assert left_behind(out) == []
    bake(base, edit, out)
    assert left_behind(out) == ["out"]


def test_what_a_killed_bake_left_is_removed(base: Path, edit: Edit, out: Path) -> None:
    process = os.fork()
    if process == 0:  # a bake that dies half-way, without any clean-up

        def die(*_: object) -> None:
            os._exit(9)

        try:
            bake(base, edit, out, progress=die)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    (leftover,) = left_behind(out)
    assert leftover.startswith(".out.partial-")
    assert not (out.parent / leftover / "config.json").exists()
    bake(base, edit, out)
    assert left_behind(out) == ["out"]


def test_a_bake_under_way_elsewhere_is_left_alone(base: Path, edit: Edit, out: Path) -> None:
    def both() -> None:
        with staging.staged(out) as other:
            (other / "file").write_text("mine")
            bake(base, edit, out)
            assert (other / "file").exists()

    with pytest.raises(OutputExistsError):
        both()
    assert left_behind(out) == ["out"]


def test_a_shard_that_changes_while_it_is_read(base: Path, edit: Edit, out: Path) -> None:
    shard = Checkpoint.open(base).shards[0].path

    def progress(*_: object) -> None:
        os.utime(shard, (1, 1))

    refused(CheckpointError, "was changed while it was read", lambda: bake(base, edit, out, progress=progress), out)


def test_progress_ends_at_the_total(base: Path, edit: Edit, out: Path) -> None:
    seen: list[tuple[str, int, int, str]] = []
    bake(base, edit, out, progress=lambda *step: seen.append(step))
    assert seen[-1][1] == seen[-1][2] == Checkpoint.open(base).size
    assert [step[1] for step in seen] == sorted(step[1] for step in seen)
