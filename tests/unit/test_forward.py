"""A row's result does not depend on the batch it is in."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from excise import EditableModel, ExciseError
from excise.model.forward import (
    batches_by_length,
    continuation_logits,
    forward,
    last_logits,
    log_softmax_chunks,
    pad_left,
    padding_is_exact,
    rows_that_fit,
    run_in_batches,
)
from zoo import build as architectures
from zoo.hybrids import HYBRIDS, build_hybrid
from zoo.tiny import CONFIGS, build

ROWS = [[5, 9, 31, 77, 12, 60, 4, 33, 21, 8, 90, 14], [44, 3, 17], [100, 101, 102, 103, 104, 105, 106]]
KINDS = ["llama", "gemma2", "gpt2", "qwen3_moe", "falcon"]


def make(kind: str) -> EditableModel:
    return EditableModel(build_hybrid(kind) if kind in HYBRIDS else build(kind, spread=2.0))


def test_padding_is_on_the_left_and_positions_count_from_the_first_token() -> None:
    batch = pad_left([[7, 8, 9], [5]], 0, "cpu")
    assert batch.input_ids.tolist() == [[7, 8, 9], [0, 0, 5]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert batch.padded
    assert not pad_left([[7], [5]], 0, "cpu").padded


def test_batches_are_by_length_and_hold_every_row_once() -> None:
    rows = [[1] * length for length in (3, 7, 3, 9, 7, 1)]
    groups = list(batches_by_length(rows, batch_size=2))
    assert groups == [[3, 1], [4, 0], [2, 5]]
    equal = list(batches_by_length(rows, batch_size=4, equal=True))
    assert equal == [[3], [1, 4], [0, 2], [5]]


@pytest.mark.parametrize("kind", [*KINDS, "bloom", "mamba", "qwen3_next"])
def test_batched_logits_and_residuals_equal_unbatched_ones(kind: str) -> None:
    assert kind in CONFIGS or kind in HYBRIDS
    model = make(kind)
    assert padding_is_exact(model)
    seen: list[Tensor] = []
    last_layer = next(module for module in model.tower.modules() if isinstance(module, nn.ModuleList))[-1]
    handle = last_layer.register_forward_hook(
        lambda _, __, output: seen.append((output if isinstance(output, Tensor) else output[0])[:, -1])
    )
    together = last_logits(model, pad_left(ROWS, 0, "cpu"), 2)
    alone = torch.cat([last_logits(model, pad_left([row], 0, "cpu"), 2) for row in ROWS])
    handle.remove()
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(seen[-4], torch.cat(seen[-3:]), atol=2e-4, rtol=1e-3)


def test_without_logits_the_head_does_not_run() -> None:
    model = make("llama")
    ran: list[str] = []
    model.hf_model.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    model.hf_model.model.layers[-1].register_forward_hook(lambda *_: ran.append("layer"))
    assert forward(model, pad_left(ROWS, 0, "cpu")) is None
    assert ran == ["layer"]
    logits = forward(model, pad_left(ROWS, 0, "cpu"), logits=1)
    assert logits is not None
    assert logits.shape == (3, 1, 256)


class Leaky(nn.Module):
    """A recurrent model that takes padding for tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(64, 16)
        self.mixer = nn.GRU(16, 16, batch_first=True)
        self.config = SimpleNamespace(pad_token_id=0)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.mixer(self.embedding(input_ids))[0] @ self.embedding.weight.T)


def test_a_model_that_leaks_padding_gets_batches_of_equal_length() -> None:
    leaky = Leaky()
    model = SimpleNamespace(hf_model=leaky, tower=leaky, device=torch.device("cpu"), dtype=torch.float32)
    assert not padding_is_exact(model)
    rows = [[1, 2, 3], [4, 5], [6, 7, 8], [9]]
    groups = [indices for indices, _ in run_in_batches(model, rows, lambda indices: indices, batch_size=8)]
    assert groups == [[0, 2], [1], [3]]


class LeakyLayer(nn.Module):
    """A layer that adds to the stream what the tokens before it, padding included, hold in one component."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.scale + torch.nn.functional.one_hot(torch.tensor(15), 16) * hidden.cumsum(dim=1)


class LeakyInside(nn.Module):
    """A model whose residuals depend on padding, and whose logits do not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(64, 16), nn.Linear(15, 64)
        self.layers = nn.ModuleList([LeakyLayer()])
        self.config = SimpleNamespace(pad_token_id=0)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.layers[0](self.embedding(input_ids))[..., :15]))


def test_padding_is_exact_only_where_residuals_are_too() -> None:
    inside = LeakyInside()
    model = SimpleNamespace(hf_model=inside, tower=inside, device=torch.device("cpu"), dtype=torch.float32)
    assert padding_is_exact(model)  # as far as the logits say
    model.survey, model.layers, model.hidden = "whatever", inside.layers, 16
    assert not padding_is_exact(model)  # now that its layers are known


@pytest.mark.parametrize("kind", ["llama", "qwen3_next", "gpt2"])
def test_padding_stays_exact_once_residuals_are_looked_at(kind: str) -> None:
    model = make(kind)
    assert model.survey.layers
    assert padding_is_exact(model)
    assert not any(module._forward_hooks for module in model.hf_model.modules())


def test_blocks_of_keys_that_padding_shifts_are_found() -> None:
    """Blocks of the real size (128 tokens): a little padding would not show."""
    hf_model = architectures.build("minimax_m3_vl_text")
    for module in hf_model.modules():
        if hasattr(module, "block_size"):
            module.block_size = 128
    assert not padding_is_exact(EditableModel(hf_model))


def test_continuation_logits_predict_the_continuation() -> None:
    model = make("gpt2")
    answers = [[11, 12], [13, 14, 15, 16], [17]]
    found = continuation_logits(model, ROWS, answers)
    assert found.mask.sum(dim=-1).tolist() == [2, 4, 1]
    for row, (prompt, answer) in enumerate(zip(ROWS, answers, strict=True)):
        full = torch.tensor([prompt + answer])
        expected = model.hf_model(full).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(found.logits[row][found.mask[row]], expected, atol=2e-4, rtol=1e-3)
        assert found.tokens[row][found.mask[row]].tolist() == answer
    assert continuation_logits(model, ROWS, answers, rows=[2, 0]).rows == (2, 0)


def test_log_softmax_in_chunks_is_log_softmax() -> None:
    logits = torch.randn(13, 50, dtype=torch.bfloat16)
    chunks = torch.cat([part for _, part in log_softmax_chunks(logits, elements=200)])
    assert torch.equal(chunks, logits.float().log_softmax(dim=-1))


def test_a_batch_that_does_not_fit_is_halved() -> None:
    model = make("llama")
    tried: list[int] = []

    def work(indices: list[int]) -> int:
        tried.append(len(indices))
        if len(indices) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return len(indices)

    rows = [[1, 2]] * 10
    done = run_in_batches(model, rows, work, batch_size=10)
    assert sorted(index for indices, _ in done for index in indices) == list(range(10))
    assert tried[:2] == [10, 5]
    assert max(tried[2:]) == 3

    def never(indices: list[int]) -> int:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(ExciseError, match="does not fit"):
        run_in_batches(model, rows, never, batch_size=4)

    def broken(indices: list[int]) -> int:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run_in_batches(model, rows, broken, batch_size=4)


def test_the_automatic_batch_size_is_positive() -> None:
    assert 1 <= rows_that_fit(make("llama"), tokens=100_000, positions=100_000) <= 64
    assert rows_that_fit(make("llama"), tokens=10) == 64
