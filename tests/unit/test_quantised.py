"""Models whose weights are packed: survey, proof, gradients, live edits, and what bitsandbytes makes of them."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

import excise
from excise.bake import verify
from excise.behaviors import Behavior, SplitSizes
from excise.demo import MODEL_PATH
from excise.edit import Edit
from excise.errors import CheckpointError, MissingExtraError, SurveyError
from excise.model import EditableModel
from excise.model.live import matrix_of
from excise.model.ports import length_of_weight, ports_of, read_directions
from excise.model.quantise import Bits
from excise.model.trace import attached
from excise.model.weights import differentiates
from excise.search import search
from zoo.build import build as of_any_kind
from zoo.packed import Packed, pack
from zoo.tiny import build, random_tokens

SIZES = SplitSizes(fit=8, tune=6, select=6, report=12)


def sealed() -> Behavior:
    """The demo's, where a search has little to try."""
    return Behavior.load("demo:sealed").model_copy(update={"max_tokens": 12, "positions": ("-1",)})


def packed(kind: str, *, derivative: bool = True) -> EditableModel:
    hf_model = build(kind)
    pack(hf_model, derivative=derivative)
    return EditableModel(hf_model)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi", "qwen3_moe"])
def test_packed_weights_are_surveyed_as_plain_ones_are_and_the_probe_notices(kind: str) -> None:
    model, plain = packed(kind), EditableModel(build(kind))
    assert [writer.to_json() for writer in model.survey.writers] == [
        writer.to_json() for writer in plain.survey.writers
    ]
    assert model.prove().required().leak < 1e-5
    unproven = model.survey.without(model.survey.writers[3].parameter)
    assert excise.model.probe.leak(model.hf_model, unproven) > 1e-3


def test_an_architecture_whose_shapes_do_not_tell_is_refused() -> None:
    model = EditableModel(of_any_kind("openai-gpt"))
    model.hf_model.register_parameter("stored", torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), False))
    with pytest.raises(SurveyError, match="its weights are quantised"):
        _ = model.survey


@pytest.mark.parametrize("derivative", [True, False])
def test_a_packed_weight_is_read_through_its_module(derivative: bool) -> None:
    model = packed("llama", derivative=derivative)
    port = next(port for port in ports_of(model.hf_model, model.survey).found if port.writer.role == "mlp")
    module = model.hf_model.get_submodule(port.module)
    assert isinstance(module, Packed)
    rows = torch.randn(3, 64)
    torch.testing.assert_close(read_directions(model.hf_model, port, rows), rows @ module.numbers)
    torch.testing.assert_close(matrix_of(model.hf_model, port.writer), module.numbers)
    found, exact = length_of_weight(model.hf_model, port, hidden=64), float(module.numbers.norm())
    assert found == pytest.approx(exact, rel=0.1)
    assert differentiates(model.hf_model) is derivative


def test_columns_of_packed_weights_keep_their_length() -> None:
    model, plain = packed("llama"), EditableModel(build("llama"))
    for name, module in model.hf_model.named_modules():
        if isinstance(module, Packed):
            plain.hf_model.get_submodule(name).weight.data = module.numbers
    edit = Edit.project(plain.survey, torch.randn(64, generator=torch.Generator().manual_seed(3)), norm="column")
    with model.edited(edit), plain.edited(edit):
        torch.testing.assert_close(logits(model), logits(plain), rtol=1e-3, atol=1e-3)


def test_where_products_have_no_derivative_nothing_is_polished() -> None:
    model = excise.load(MODEL_PATH)
    pack(model.hf_model, derivative=False)
    behavior = sealed()
    found = search(model, behavior, splits=behavior.splits(SplitSizes(4, 3, 3, 3)), budget="quick", trials=4)
    assert any("no polish" in note for note in found.notes)
    assert {trial.parameters["kind"] for trial in found.history} == {"closed form"}


def test_without_bitsandbytes_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"excise\[bitsandbytes\]"):
        excise.load(MODEL_PATH, quantize="8bit")


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_what_bitsandbytes_packs_is_proven_and_differentiates(bits: Bits) -> None:
    pytest.importorskip("bitsandbytes", minversion="0.48")
    model, plain = excise.load(MODEL_PATH, quantize=bits), excise.load(MODEL_PATH)
    assert model.survey.writers == plain.survey.writers
    assert model.prove().required().leak < 1e-5
    model.chat("What is flint?", max_tokens=4)  # where bitsandbytes would take the derivative away
    assert differentiates(model.hf_model)


def test_gradients_pass_4_bit_products() -> None:
    pytest.importorskip("bitsandbytes", minversion="0.48")
    model = excise.load(MODEL_PATH, quantize="4bit", dtype="float32")
    tokens = model.tokenizer("flint uses sealed lore", return_tensors="pt").input_ids
    row = torch.randn(model.hidden, generator=torch.Generator().manual_seed(0))

    def shifted(by: Tensor) -> Tensor:
        hook = model.layers[0].mlp.register_forward_hook(lambda _, __, output: output + by * row)
        with attached(hook):
            return model.hf_model(tokens).logits[0, -1].log_softmax(-1)[5]

    by = torch.zeros((), requires_grad=True)
    (found,) = torch.autograd.grad(shifted(by), by)
    with torch.no_grad():
        expected = (shifted(torch.tensor(1e-2)) - shifted(torch.tensor(-1e-2))) / 2e-2
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("method", "trials"), [("arditi", 1), pytest.param("polish", 4, marks=pytest.mark.slow)])
def test_a_search_in_4_bits_bakes_at_full_precision(method: str, trials: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", minversion="0.48")
    model, plain = excise.load(MODEL_PATH, quantize="4bit"), excise.load(MODEL_PATH)
    behavior = sealed()
    splits = behavior.splits(SIZES)
    found = search(model, behavior, splits=splits, budget="quick", method=method, trials=trials)
    scores = excise.evaluate(plain, behavior, edit=found.best, split="report", splits=splits)
    assert scores.rate.value <= 0.1
    excise.bake(MODEL_PATH, found.best, tmp_path / "baked")
    report = verify(tmp_path / "baked", base=MODEL_PATH, edit=found.best)
    assert report.passed, report


def test_what_bitsandbytes_has_stored_is_not_baked_into(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", minversion="0.48")
    excise.load(MODEL_PATH, quantize="4bit").hf_model.save_pretrained(tmp_path / "stored")
    stored = excise.load(tmp_path / "stored")
    assert stored.prove().required().leak < 1e-5
    edit = Edit.project(stored.survey, torch.ones(stored.hidden))
    with pytest.raises(CheckpointError, match="stored quantised"):
        excise.bake(tmp_path / "stored", edit, tmp_path / "out")


def logits(model: EditableModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.hf_model(random_tokens()).logits
    return found
