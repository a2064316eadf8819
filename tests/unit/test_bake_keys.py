"""The map from parameters to checkpoint keys agrees with what Transformers does when it loads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
)

from excise.bake.keys import KeyMap, Placement, _convert, _Sources, skeleton
from excise.bake.plan import blocks
from excise.errors import CheckpointError
from zoo.tiny import CONFIGS, build


def rebuilt(parts: tuple[Placement, ...], tensors: dict[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """The parameter put together from its placements alone."""
    whole = torch.full(shape, torch.nan)
    for part in parts:
        order = [part.axes.index(axis) for axis in sorted(part.axes)]
        value = tensors[part.key].float().permute(order)
        for axis in range(len(shape)):
            if axis not in part.axes:
                value = value.unsqueeze(axis)
        where = tuple(slice(start, start + part.extent(axis)) for axis, start in enumerate(part.start))
        whole[where] = value
    return whole


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_placements_rebuild_every_parameter_that_can_be_followed(tmp_path: Path, kind: str) -> None:
    model = build(kind)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    empty = skeleton(AutoConfig.from_pretrained(tmp_path), AutoModelForCausalLM)
    assert all(parameter.is_meta for parameter in empty.parameters())
    keys = KeyMap(empty, {key: tuple(tensor.shape) for key, tensor in stored.items()})
    assert keys.missing() == ()
    for name, parameter in loaded.named_parameters():
        found = rebuilt(keys.placements(name), stored, tuple(parameter.shape))
        torch.testing.assert_close(found, parameter.detach(), rtol=0, atol=0)


def test_the_text_tower_of_a_vision_language_model(tmp_path: Path) -> None:
    text = {**CONFIGS["gemma3_text"], "pad_token_id": 0}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config={**vision, "image_size": 28})
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    keys = KeyMap(
        skeleton(AutoConfig.from_pretrained(tmp_path), AutoModelForImageTextToText),
        {key: tuple(tensor.shape) for key, tensor in stored.items()},
    )
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    name = next(name for name, _ in loaded.named_parameters() if name.endswith("layers.1.mlp.down_proj.weight"))
    (part,) = keys.placements(name)
    assert part.key != name
    assert torch.equal(stored[part.key], loaded.get_parameter(name))


def converted(operations: list[object], shapes: dict[str, list[tuple[int, ...]]]) -> None:
    """Follow a conversion by shapes, and compare with the conversion itself on random tensors."""
    generator = torch.Generator().manual_seed(0)
    patterns = list(shapes)
    converter = WeightConverter(source_patterns=patterns, target_patterns="target", operations=operations)
    tensors = {
        f"{pattern}.{index}": torch.randn(shape, generator=generator)
        for pattern in patterns
        for index, shape in enumerate(shapes[pattern])
    }
    sources = _Sources(converter)
    for pattern in patterns:
        for index in range(len(shapes[pattern])):
            key = f"{pattern}.{index}"
            sources.keys[pattern].append(key)
            converter.add_tensor("target", key, pattern, tensors[key])
    expected = converter.convert("target")["target"]
    shape = tuple(expected.shape)
    block = _convert(sources, "target", shape, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    assert block.shape == shape
    assert torch.equal(rebuilt(block.parts, tensors, shape), expected)


@pytest.mark.parametrize(
    ("operations", "shapes"),
    [
        ([MergeModulelist(dim=0)], {"w": [(4, 6)] * 3}),
        ([MergeModulelist(dim=0)], {"b": [(4,)] * 3}),
        ([MergeModulelist(dim=0), Concatenate(dim=1)], {"gate": [(4, 6)] * 3, "up": [(5, 6)] * 3}),
        ([Concatenate(dim=0)], {"q": [(4, 6)], "k": [(2, 6)]}),
        ([Concatenate(dim=1)], {"q": [(4, 6)], "k": [(4, 3)]}),
        ([Transpose(1, 2)], {"w": [(3, 4, 6)]}),
        ([Transpose(0, 1)], {"w": [(4, 6)]}),
        ([MergeModulelist(dim=0), Transpose(1, 2)], {"w": [(4, 6)] * 3}),
    ],
)
def test_operations_are_followed_exactly(operations: list[object], shapes: dict[str, list[tuple[int, ...]]]) -> None:
    converted(operations, shapes)


@pytest.mark.parametrize(
    ("operations", "targets"), [([Interleave(dim=0)], ["target"]), ([Chunk(dim=0)], ["target", "other"])]
)
def test_what_cannot_be_followed_is_refused_by_name(operations: list[object], targets: list[str]) -> None:
    sources = _Sources(WeightConverter(source_patterns="w", target_patterns=targets, operations=operations))
    sources.keys["w"].append("checkpoint.w")
    with pytest.raises(CheckpointError, match=r"target .* checkpoint\.w"):
        _convert(sources, "target", (4, 6), {"checkpoint.w": (4, 6)})


def test_experts_of_different_shapes_are_refused() -> None:
    sources = _Sources(WeightConverter("w", "target", [MergeModulelist(dim=0)]))
    sources.keys["w"] += ["one", "two"]
    with pytest.raises(CheckpointError, match="different shapes"):
        _convert(sources, "target", (2, 4, 6), {"one": (4, 6), "two": (4, 5)})


def test_a_missing_expert_is_noticed(tmp_path: Path) -> None:
    build("mixtral").save_pretrained(tmp_path)
    stored = {key: tuple(tensor.shape) for key, tensor in load_file(tmp_path / "model.safetensors").items()}
    lost = next(key for key in stored if "layers.1" in key and "experts.2.w2" in key)
    del stored[lost]
    keys = KeyMap(skeleton(AutoConfig.from_pretrained(tmp_path), AutoModelForCausalLM), stored)
    with pytest.raises(CheckpointError, match="the model needs"):
        keys.placements("model.layers.1.mlp.experts.down_proj")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(0, 3), st.integers(1, 200))
def test_blocks_tile_the_tensor_in_whole_columns(shape: list[int], axis: int, limit: int) -> None:
    axis %= len(shape)
    count = torch.zeros(shape)
    for block in blocks(tuple(shape), axis, limit):
        assert block[axis] == slice(0, shape[axis])
        assert count[block].numel() <= max(limit, shape[axis])
        count[block] += 1
    assert torch.equal(count, torch.ones(shape))
