"""Divergence from the base model: exactly none without an edit, and the textbook's value with one."""

from __future__ import annotations

import pytest
import torch

from excise import Edit, EditableModel, ExciseError
from excise.behaviors import Behavior
from excise.evaluation import Reference
from excise.evaluation.reference import _compare_tokens
from excise.evaluation.storage import TensorStore
from zoo.letters import CHATML, letters
from zoo.tiny import build

PROMPTS = ["Hello there", "What is it?", "A", "Tell me a long story about a fox", "two"]
BEHAVIOR = Behavior.from_files("a.txt", "b.txt", markers=["never said"])


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def model(request: pytest.FixtureRequest) -> EditableModel:
    return EditableModel(build("llama", spread=2.0, dtype=request.param), letters(template=CHATML))


@pytest.fixture(scope="module")
def reference(model: EditableModel) -> Reference:
    return Reference.measure(model, PROMPTS, BEHAVIOR, tokens=7, batch_size=3)


def random_edit(model: EditableModel, strength: float = 1.0) -> Edit:
    return Edit.project(model.survey, torch.randn(64, generator=torch.Generator().manual_seed(3)), strength=strength)


def test_no_edit_means_exactly_no_divergence(model: EditableModel, reference: Reference) -> None:
    with model.edited(Edit.empty(model.survey)):
        found = reference.compare(model)
    assert found.first.max == 0.0
    assert found.sequence.max == 0.0
    assert found.top1 == 1.0
    assert found.perplexity_ratio == 1.0


def test_kl_is_the_textbook_s(model: EditableModel, reference: Reference) -> None:
    edit = random_edit(model)
    with model.edited(edit):
        found = reference.compare(model)
    first, sequence, losses = [], [], []
    for prompt, response in zip(reference.prompts, reference.responses, strict=True):
        ids = torch.tensor([[*prompt, *response.tokens]])
        base = model.hf_model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(dim=-1)
        with model.edited(edit):
            edited = model.hf_model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(dim=-1)
        kl = (base.exp() * (base - edited)).sum(dim=-1)
        first.append(kl[0])
        sequence.append(kl.mean())
        places = torch.arange(len(response.tokens))
        losses.append((base - edited)[places, torch.tensor(response.tokens)])
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    assert found.first.mean == pytest.approx(torch.stack(first).mean().item(), rel=tolerance)
    assert found.sequence.mean == pytest.approx(torch.stack(sequence).mean().item(), rel=tolerance)
    assert found.sequence.max == pytest.approx(torch.stack(sequence).max().item(), rel=tolerance)
    assert found.perplexity_ratio == pytest.approx(torch.cat(losses).mean().exp().item(), rel=tolerance)
    assert found.first.mean > 1e-3
    assert 0 <= found.top1 < 1


def test_divergence_grows_with_strength(model: EditableModel, reference: Reference) -> None:
    means = []
    for strength in (0.25, 0.5, 1.0):
        with model.edited(random_edit(model, strength)):
            means.append(reference.compare(model).sequence.mean)
    assert means == sorted(means)


def test_logits_beyond_the_memory_limit_are_just_as_exact(model: EditableModel) -> None:
    reference = Reference.measure(model, PROMPTS, BEHAVIOR, tokens=7, batch_size=3, memory=10_000)
    assert reference._logits._directory is not None
    assert reference.compare(model).sequence.max == 0.0


def test_base_continuations_are_greedy_and_short(reference: Reference) -> None:
    assert len(reference.responses) == len(PROMPTS)
    assert all(1 <= len(response.tokens) <= 7 for response in reference.responses)


def test_ruled_out_tokens_are_no_nan() -> None:
    base = torch.tensor([[0.0, 1.0, -torch.inf]])
    tokens = _compare_tokens(base, base + torch.tensor([[0.5, 0.0, 0.0]]), torch.tensor([1]))
    assert torch.isfinite(tokens.kl).all()
    assert tokens.kl.item() > 0


def test_nothing_to_compare_on_is_an_error(model: EditableModel) -> None:
    with pytest.raises(ExciseError, match="prompts"):
        Reference.measure(model, [], BEHAVIOR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_tensors_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    store = TensorStore(limit=100)
    values = [torch.randn(3, 5).to(dtype) for _ in range(6)]
    assert [store.append(value) for value in values] == list(range(6))
    assert all(torch.equal(store[index], value) for index, value in enumerate(values))
    assert store.used <= 100
    assert len(store) == 6
