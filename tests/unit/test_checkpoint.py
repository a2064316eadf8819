"""Reading checkpoints: headers, damage, identity, and finding the directory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import errors as hub
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from excise.errors import CheckpointError, EditMismatchError, ExciseError, ModelError
from excise.model.checkpoint import Checkpoint, checkpoint_hash, config_hash, locate, model_identity, read_header
from zoo.tiny import CONFIGS, build

TENSORS = {"a.weight": torch.randn(4, 6), "b.weight": torch.randn(3).to(torch.bfloat16), "empty": torch.zeros(0, 2)}


def saved(folder: Path, tensors: dict[str, torch.Tensor] = TENSORS) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def sharded(folder: Path) -> Path:
    folder.mkdir()
    located = {}
    for number, (key, tensor) in enumerate(TENSORS.items()):
        located[key] = f"model-{number}.safetensors"
        save_file({key: tensor}, folder / located[key])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": located}))
    return folder


def stored(path: Path, start: int, size: int) -> bytes:
    return path.read_bytes()[start : start + size]


def test_a_single_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.index is None
    assert checkpoint.files == {"model.safetensors"}
    assert checkpoint.size == path.stat().st_size
    assert set(checkpoint.tensors) == set(TENSORS)
    entry = checkpoint.tensors["b.weight"]
    assert (entry.dtype, entry.shape, entry.size) == ("BF16", (3,), 6)
    assert stored(path, entry.start, entry.size) == bytes(TENSORS["b.weight"].view(torch.uint8).tolist())


def test_shards(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(sharded(tmp_path / "model"))
    assert len(checkpoint.shards) == 3
    assert checkpoint.tensors["a.weight"].shard == "model-0.safetensors"
    assert checkpoint.tensors["a.weight"].shape == (4, 6)


def test_a_truncated_file_at_any_length(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"truncated|corrupted") as error:
            Checkpoint.open(tmp_path)
        assert error.value.hint


def test_bytes_that_no_tensor_owns(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="4 bytes that its header does not know"):
        Checkpoint.open(tmp_path)


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {"a": 3},
        {"a": entry(dtype="F33")},
        {"a": entry(shape=[3])},
        {"a": entry(shape=[-2])},
        {"a": entry(shape=["2"])},
        {"a": entry(shape=[2.0])},
        {"a": entry(data_offsets=[0])},
        {"a": entry(data_offsets=[8, 0])},
        {"a": entry(data_offsets=[-8, 0])},
        {"a": entry(data_offsets=[0, 10**30])},
        {"a": entry(), "b": entry()},
        {"a": entry(), "b": entry(data_offsets=[12, 20])},
        {"a": {"dtype": "F32"}},
        {"a": entry(shape=[2**40, 2**40])},
    ],
)
def test_a_header_that_lies(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))
    with pytest.raises(CheckpointError):
        read_header(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes, length: int) -> None:
    path = tmp_path / "model.safetensors"
    for content in (data, struct.pack("<Q", length) + data, struct.pack("<Q", len(data)) + data):
        path.write_bytes(content)
        try:
            read_header(path)
        except ExciseError as error:
            assert error.hint  # noqa: PT017


def test_a_header_of_absurd_length_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**31))
        file.truncate(2**32)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_header(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda index: index["weight_map"].update({"a.weight": "model-9.safetensors"}), "model-9.safetensors"),
        (lambda index: index["weight_map"].update({"new": "model-1.safetensors"}), "says that .* holds new"),
        (lambda index: index["weight_map"].update({"a.weight": "../model.safetensors"}), "outside its directory"),
        (lambda index: index["weight_map"].update({"a.weight": "/etc/passwd"}), "outside its directory"),
        (lambda index: index["weight_map"].update({"a.weight": ""}), "outside its directory"),
        (lambda index: index["weight_map"].update({"a.weight": 3}), "not a valid index"),
        (lambda index: index.pop("weight_map"), "not a valid index"),
        (lambda index: index.update(weight_map=[]), "not a valid index"),
    ],
)
def test_a_damaged_index(tmp_path: Path, damage: Callable[[dict[str, object]], object], message: str) -> None:
    folder = sharded(tmp_path / "model")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    damage(index)
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_an_index_that_is_not_json(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_bytes(b"\xff{")
    with pytest.raises(CheckpointError, match="not a valid index"):
        Checkpoint.open(folder)


def test_a_key_in_two_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model")
    save_file(TENSORS, folder / "model-0.safetensors")
    with pytest.raises(CheckpointError, match="stored in two shards"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("pytorch_model.bin", "pickled"), ("model.gguf", "GGUF"), ("notes.txt", "no model.safetensors")],
)
def test_directories_without_safetensors(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match="no directory"):
        Checkpoint.open(tmp_path / "nothing")


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_config_hash_survives_saving_and_loading(tmp_path: Path, kind: str) -> None:
    model = build(kind)
    model.save_pretrained(tmp_path)
    expected = config_hash(model.config)
    assert config_hash(AutoConfig.from_pretrained(tmp_path)) == expected
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert config_hash(loaded.config) == expected


def test_config_hash_tells_architectures_apart() -> None:
    hashes = {config_hash(AutoConfig.for_model(kind, **CONFIGS[kind])) for kind in CONFIGS}
    assert len(hashes) == len(CONFIGS)
    deeper = AutoConfig.for_model("llama", **{**CONFIGS["llama"], "num_hidden_layers": 5})
    assert config_hash(deeper) not in hashes


def test_checkpoint_hash_sees_weights_not_shards(tmp_path: Path) -> None:
    saved(tmp_path / "single")
    sharded(tmp_path / "sharded")
    one = checkpoint_hash(Checkpoint.open(tmp_path / "single"))
    assert one == checkpoint_hash(Checkpoint.open(tmp_path / "sharded"))
    saved(tmp_path / "other", {**TENSORS, "a.weight": TENSORS["a.weight"] * 1.01})
    assert one != checkpoint_hash(Checkpoint.open(tmp_path / "other"))
    saved(tmp_path / "cast", {**TENSORS, "a.weight": TENSORS["a.weight"].half()})
    assert one != checkpoint_hash(Checkpoint.open(tmp_path / "cast"))


def test_identity_of_other_weights_is_refused(tmp_path: Path) -> None:
    for seed in (0, 1):
        build("llama", seed=seed).save_pretrained(tmp_path / str(seed))
    one, other = (
        model_identity(AutoConfig.from_pretrained(tmp_path / name), name=name, directory=tmp_path / name)
        for name in ("0", "1")
    )
    one.check(one)
    with pytest.raises(EditMismatchError, match="other weights"):
        one.check(other)
    memory = model_identity(build("llama").config, name="memory")
    assert memory.checkpoint_hash is None
    memory.check(one)


def test_locate_a_directory(tmp_path: Path) -> None:
    assert locate(tmp_path) == tmp_path
    assert locate(str(tmp_path)) == tmp_path
    file = saved(tmp_path)
    for name, message in [
        (str(file), "is a file"),
        (str(tmp_path / "nothing"), "no directory"),
        (tmp_path / "nothing", "no directory"),
        ("./nothing", "no directory"),
        ("a/b/c", "no directory"),
    ]:
        with pytest.raises(ModelError, match=message) as error:
            locate(name)
        assert error.value.hint


def raising(error: Exception) -> Callable[..., str]:
    def download(*args: object, **kwargs: object) -> str:
        raise error

    return download


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub.HFValidationError("bad"), "not a Hub id"),
        (hub.LocalEntryNotFoundError("missing"), "not on this machine"),
        (OSError("reset"), "could not be downloaded"),
        (hub.GatedRepoError("gated", response=Mock()), "is gated"),
        (hub.RevisionNotFoundError("revision", response=Mock()), "has no revision main"),
        (hub.RepositoryNotFoundError("repository", response=Mock()), "no such model on the Hub"),
    ],
)
def test_download_errors(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    monkeypatch.setattr("excise.model.locate.snapshot_download", raising(error))
    with pytest.raises(ModelError, match=message) as caught:
        locate("org/model", revision="main")
    assert caught.value.hint


def test_offline_uses_what_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, object] = {}

    def download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("excise.model.locate.snapshot_download", download)
    assert locate("org/model", revision="abc", offline=True) == tmp_path
    assert (asked["name"], asked["revision"], asked["local_files_only"]) == ("org/model", "abc", True)
    assert not any(str(pattern).endswith((".bin", ".pt")) for pattern in asked["allow_patterns"])  # type: ignore[attr-defined]


def test_headers_agree_with_the_library(tmp_path: Path) -> None:
    build("qwen3").save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {key: entry.shape for key, entry in checkpoint.tensors.items()} == {
        key: tuple(tensor.shape) for key, tensor in tensors.items()
    }
